// Connections between ranks: addresses, the proof that both ends know the group's secret, and
// messages with their length in front.
#pragma once

#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "base/fd.h"
#include "google/protobuf/message_lite.h"

namespace reprise::engine {

// Longest message: a KV state that is restored.
inline constexpr uint32_t kFrameBytesMax = 2'000'000'000;

// Addresses are "unix:PATH" or "HOST:PORT"; port 0 is any free one. INVALID_ARGUMENT for others.
// The address as bound, for Dial, is put into *bound.
absl::StatusOr<base::UniqueFd> Listen(const std::string& address, std::string* bound);
absl::StatusOr<base::UniqueFd> Dial(const std::string& address);
// The next connection. DEADLINE_EXCEEDED after `timeout`.
absl::StatusOr<base::UniqueFd> Accept(int listener, absl::Duration timeout);

// What a connection is for: 0 is the commands of the first rank, r + 1 the exchange with rank r.
using Role = uint32_t;
inline constexpr Role kCommands = 0;
// Both ends prove that they know `secret` (HMAC-SHA256 over the other's challenge) and the caller
// says its role; the secret itself and the data are not hidden from who reads the network.
// PERMISSION_DENIED for another secret.
absl::Status ShakeHandsAsCaller(int fd, std::string_view secret, Role role);
absl::StatusOr<Role> ShakeHandsAsListener(int fd, std::string_view secret);

// UNAVAILABLE when the other end is gone; DATA_LOSS for what is no message.
absl::Status SendMessage(int fd, const google::protobuf::MessageLite& message);
absl::Status ReceiveMessage(int fd, google::protobuf::MessageLite* message);

}  // namespace reprise::engine
