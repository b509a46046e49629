// The gate: the one way out of a sandbox that has a network. A process of its own beside each such
// sandbox; it lives as long as the sandbox's first process, whatever becomes of the daemon, and the
// next daemon finds it by its socket.
//
// Why a gate and not packet rules: the sandbox's network namespace has nothing but a loopback, so
// without its gate it reaches nothing, whatever fails. The host is left as it is: no interfaces, no
// forwarding, no tables, nothing to clean up behind a daemon that was killed. And addresses are
// judged where connections are made, so that a name that is answered with another address, or with
// one of this host's, gains nothing.
//
// The price: only TCP and UDP over IPv4; a refused TCP connection is accepted and reset; a program
// cannot serve on 127.0.0.1:53, where the gate's DNS is.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "base/fd.h"
#include "sandboxd/network/inside.h"
#include "sandboxd/network/policy.h"

namespace reprise::sandboxd::network {

struct GateOptions {
  Endpoint resolver;       // that the gate's DNS asks
  base::UniqueFd netns;    // of the sandbox
  base::UniqueFd life;     // a pidfd: the gate ends when that process does
  base::UniqueFd control;  // a listening unix stream socket
};

// Sets the sandbox's network up, gives up all privileges, calls `ready`, and serves until the
// sandbox ends. An error is one of setting up.
//
// A connection to `control` carries one request up to its end, and one answer:
//   "set\n" and a policy as Policy::Text has it  ->  "ok\n" when it is in force; what it forbids is
//   cut by then "counters\n"                                 ->  "ok\n" and one line "name value"
//   for each anything else                                ->  "error " and why
absl::Status RunGate(GateOptions options, Policy policy, const std::function<void()>& ready);

}  // namespace reprise::sandboxd::network
