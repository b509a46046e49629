// Files of one sandbox as HTTP surfaces need them, over the tier's few verbs. Everything blocks.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "reprise/sandbox/v1/sandbox.pb.h"
#include "sandboxd/sandbox_manager.h"

namespace reprise::sandboxd::http {

// A path without "." and empty components and trailing slashes, ".." taken back lexically.
// Relative ones, and those below "~", begin at `working_dir`.
std::string CleanPath(std::string_view path, std::string_view working_dir);
// "/a/b" -> "/a" and "b"; "/" -> "/" and "".
std::pair<std::string, std::string> SplitPath(const std::string& path);

class BoxFiles {
 public:
  // Thaws a paused sandbox. Errors as SandboxManager::Use.
  static absl::StatusOr<BoxFiles> Open(SandboxManager* sandboxes, const std::string& id);

  // INVALID_ARGUMENT for what cannot be a path.
  absl::StatusOr<std::string> Path(std::string_view path) const;
  const std::string& user() const { return lease_.spec->user(); }

  // What is at `path`, links not followed. NOT_FOUND.
  absl::StatusOr<sandbox::FileInfo> Stat(const std::string& path) const;
  bool IsDirectory(const std::string& path) const;
  // By name.
  absl::StatusOr<std::vector<sandbox::FileInfo>> List(const std::string& path) const;
  absl::Status Read(const std::string& path,
                    const std::function<absl::Status(std::string_view)>& chunk) const;
  // With its parents. `next` gives pieces, "" at the end.
  absl::Status Write(const std::string& path,
                     const std::function<absl::StatusOr<std::string>()>& next) const;
  absl::Status MakeDir(const std::string& path) const;
  absl::Status Move(const std::string& from, const std::string& to) const;
  // OK when there is nothing.
  absl::Status Remove(const std::string& path) const;

 private:
  BoxFiles(SandboxManager* sandboxes, SandboxManager::Lease lease)
      : sandboxes_(sandboxes), lease_(std::move(lease)) {}
  SandboxManager* sandboxes_;  // not owned
  SandboxManager::Lease lease_;
};

}  // namespace reprise::sandboxd::http
