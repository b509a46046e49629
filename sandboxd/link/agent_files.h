// File verbs of a sandbox, done by its agent: one connection an operation, everything that comes
// back is checked and bounded, and an agent that stops answering ends the operation with
// DEADLINE_EXCEEDED.
#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "reprise/sandbox/v1/sandbox.pb.h"

namespace reprise::sandboxd {

namespace sandbox = ::reprise::sandbox::v1;

// Whose file, and as whom: `run_dir` holds the agent's socket, user "" is the sandbox's default.
struct AgentPath {
  std::string run_dir;
  std::string path;
  std::string user;
};

// OK when the agent answers. UNAVAILABLE when nobody listens, DEADLINE_EXCEEDED after `timeout_ms`.
absl::Status PingAgent(const std::string& run_dir, int64_t timeout_ms);
// Kills and forgets calls that nobody is attached to.
absl::Status PruneAgent(const std::string& run_dir, int64_t timeout_ms);

// Errors of the five below: NOT_FOUND, PERMISSION_DENIED and the like from the sandbox's file
// system.
absl::Status ReadAgentFile(const AgentPath& file,
                           const std::function<absl::Status(std::string_view)>& chunk);
// `next` gives pieces and "" at the end; mode 0 means 0644. With `make_parents`, missing
// directories are made.
absl::Status WriteAgentFile(const AgentPath& file, uint32_t mode, bool make_parents,
                            const std::function<absl::StatusOr<std::string>()>& next);
absl::StatusOr<std::vector<sandbox::FileInfo>> ListAgentDir(
    const AgentPath& directory);  // ordered by name
absl::Status MakeAgentDir(const AgentPath& directory);
absl::Status RemoveAgentPath(const AgentPath& path);
absl::Status MoveAgentPath(const AgentPath& from, const std::string& to);

}  // namespace reprise::sandboxd
