// The daemon's side of one container's agent. Nothing that comes from it is trusted: the socket is
// opened without following links, frames are decoded strictly and have limits, and every wait has a
// deadline.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/fd.h"
#include "sandboxd/agent/protocol.h"

namespace reprise::sandboxd {

inline constexpr int64_t kAgentAnswerMs = 30'000;  // for small requests

// One connection; frames in order, each side of it used by one thread.
class AgentConnection {
 public:
  // `run_dir` is the sandbox's run directory on the host. UNAVAILABLE when nobody listens there.
  static absl::StatusOr<AgentConnection> Open(const std::string& run_dir);

  // Sends all bytes; DEADLINE_EXCEEDED when the agent does not take them.
  absl::Status Send(std::string_view bytes, int64_t timeout_ms = kAgentAnswerMs);

  struct Received {
    agent::FrameType type;
    std::string payload;
  };
  // The next frame. UNAVAILABLE when the agent closed, DATA_LOSS when it broke the protocol,
  // DEADLINE_EXCEEDED after `timeout_ms` (-1: waits for ever).
  absl::StatusOr<Received> Receive(int64_t timeout_ms = kAgentAnswerMs);

  // The next frame if it is there: nullopt when it is not (yet); errors as Receive.
  absl::StatusOr<std::optional<Received>> TryReceive();

  // Receives the answer to a request that has no other: OK, or the agent's error.
  absl::Status ReceiveOk(int64_t timeout_ms = kAgentAnswerMs);

  int fd() const { return fd_.get(); }
  AgentConnection(AgentConnection&&) = default;
  AgentConnection& operator=(AgentConnection&&) = default;

 private:
  explicit AgentConnection(base::UniqueFd fd) : fd_(std::move(fd)) {}
  base::UniqueFd fd_;
  agent::FrameReader frames_;
};

// A kError frame as a Status: the errno's code, the agent's words made safe to print.
absl::Status AgentError(std::string_view payload);

// At most 512 printable bytes of something the agent said.
std::string Printable(std::string_view text);

// Opens a connection, sends one frame, waits `timeout_ms` for kOk. UNAVAILABLE when nobody listens.
absl::Status AgentRequest(const std::string& run_dir, const std::string& frame,
                          int64_t timeout_ms = kAgentAnswerMs);

}  // namespace reprise::sandboxd
