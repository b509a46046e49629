// Sandboxes of a sandboxd at an address: waits while that daemon is away, because every request may
// be sent again.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "rollout/sandboxes.h"

namespace reprise::rollout {

// How long one request may take, a sandboxd that is away included; then the trajectory fails as
// `infra`.
inline constexpr absl::Duration kSandboxPatience = absl::Hours(24);
// Most that is kept of each output stream of a call, its end.
inline constexpr size_t kMaxCallOutputBytes = 16 << 20;

// Connects with the first request. INVALID_ARGUMENT for an empty address.
absl::StatusOr<std::unique_ptr<Sandboxes>> ConnectSandboxes(const std::string& address);

}  // namespace reprise::rollout
