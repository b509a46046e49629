// Steers the connections of a network namespace to the gate: a socket-lookup program (BPF,
// Linux 5.9) that the kernel runs in that namespace where it looks for the socket of a new TCP
// connection or of a UDP datagram without one. Destinations outside of 127.0.0.0/8 and of the
// namespace's own address go to the gate's sockets, and so does port 53 of every address. The rest
// is the sandbox's own business. When the gate ends, its program ends with it.
#pragma once

#include <cstdint>

#include "absl/status/statusor.h"
#include "base/fd.h"

namespace reprise::sandboxd::network {

// Bound, listening or unconnected sockets of the namespace.
struct SteeredSockets {
  int tcp = -1, udp = -1;          // every destination
  int dns_tcp = -1, dns_udp = -1;  // port 53
};

// For the network namespace `netns`, whose own address is `own` (host order). In force until the
// descriptor is closed. Errors: what the kernel lacks, or who this is not.
absl::StatusOr<base::UniqueFd> Steer(int netns, uint32_t own, const SteeredSockets& sockets);

}  // namespace reprise::sandboxd::network
