// File verbs of a sandbox, done by its agent: one connection an operation, everything that comes
// back is checked and bounded, and an agent that stops answering ends the operation with
// DEADLINE_EXCEEDED.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "sandboxd/substrate.h"

namespace reprise::sandboxd {

// Whose file, and as whom: `run_dir` holds the agent's socket, user "" is the sandbox's default.
struct RemotePath {
  std::string run_dir;
  std::string path;
  std::string user;
};

// Errors of all: NOT_FOUND, PERMISSION_DENIED and the like from the sandbox's file system;
// UNAVAILABLE when nobody listens.
absl::Status ReadRemoteFile(const RemotePath& file,
                            const std::function<absl::Status(std::string_view)>& chunk);
// `next` gives pieces and "" at the end; mode 0 means 0644. With `make_parents`, missing
// directories are made.
absl::Status WriteRemoteFile(const RemotePath& file, uint32_t mode, bool make_parents,
                             const std::function<absl::StatusOr<std::string>()>& next);
// Lays the files of a request into its working directory, as its user or else as `user`.
absl::Status WriteInputFiles(const std::string& run_dir, const std::string& user,
                             const sandbox::ExecuteRequest& request);
absl::StatusOr<std::vector<sandbox::FileInfo>> ListRemoteDir(
    const RemotePath& directory);  // ordered by name
absl::Status MakeRemoteDir(const RemotePath& directory);
absl::Status RemoveRemotePath(const RemotePath& path);
// In force when it returns.
absl::StatusOr<std::unique_ptr<FileWatch>> WatchRemoteDir(const RemotePath& directory,
                                                          bool recursive);
absl::Status MoveRemotePath(const RemotePath& from, const std::string& to);

}  // namespace reprise::sandboxd
