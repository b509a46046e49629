// The gate's foot in the network namespace of its sandbox: one thread that entered it, made the
// sockets there that everything is steered to, and makes those that answer a program's datagrams.
// Every other thread stays outside.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>

#include "absl/status/statusor.h"
#include "base/fd.h"

namespace reprise::sandboxd::network {

// The address that a sandbox has: of the range for carriers' networks, so it is nobody's address
// that a program wants.
inline constexpr uint32_t kSandboxAddress = 0x64400001;  // 100.64.0.1

struct Endpoint {
  uint32_t address = 0;  // host order
  uint16_t port = 0;
  auto operator<=>(const Endpoint&) const = default;
};

class Inside {
 public:
  // Sets the namespace up: loopback, address, routes, steering. Needs root; what is made later does
  // not.
  static absl::StatusOr<std::unique_ptr<Inside>> Enter(base::UniqueFd netns);
  virtual ~Inside() = default;

  // Non-blocking sockets of the namespace. TCP: listening. The local address of what they receive
  // is what the program called.
  virtual int tcp() const = 0;
  virtual int udp() const = 0;
  virtual int dns_tcp() const = 0;
  virtual int dns_udp() const = 0;
  // A datagram socket that is `destination` to the program at `client`: it receives what comes
  // after the first datagram.
  virtual absl::StatusOr<base::UniqueFd> Answerer(const Endpoint& destination,
                                                  const Endpoint& client) = 0;
};

// The next close of this TCP connection is a reset.
void Reset(int fd);

}  // namespace reprise::sandboxd::network
