// The three things that the gate asks the kernel's routing for, over rtnetlink.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace reprise::sandboxd::network {

// Whether packets from here to `address` leave this host: false for the host's own addresses, and
// for broadcasts and addresses without a route. Of the network namespace of the calling thread.
absl::StatusOr<bool> LeavesHost(uint32_t address);

// Brings the loopback of the calling thread's network namespace up, with `address` on it, and makes
// every IPv4 address local to it: whatever a program there connects to is received in the same
// namespace. Idempotent.
absl::Status MakeEverythingLocal(uint32_t address);

}  // namespace reprise::sandboxd::network
