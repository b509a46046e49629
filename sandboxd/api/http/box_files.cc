#include "sandboxd/api/http/box_files.h"

#include <sys/stat.h>

#include <algorithm>
#include <utility>

#include <fmt/format.h>

#include "base/status_macros.h"
#include "sandboxd/limits.h"

namespace reprise::sandboxd::http {

std::string CleanPath(std::string_view path, std::string_view working_dir) {
  std::string whole(path);
  if (whole == "~" || whole.substr(0, 2) == "~/") whole.erase(0, std::min<size_t>(2, whole.size()));
  if (whole.empty() || whole.front() != '/') whole = fmt::format("{}/{}", working_dir, whole);
  std::vector<std::string_view> parts;
  const std::string_view text = whole;
  for (size_t at = 0; at < text.size();) {
    const size_t end = std::min(text.find('/', at), text.size());
    const std::string_view part = text.substr(at, end - at);
    at = end + 1;
    if (part.empty() || part == ".") continue;
    if (part != "..") {
      parts.push_back(part);
    } else if (!parts.empty()) {
      parts.pop_back();
    }
  }
  std::string clean;
  for (const std::string_view part : parts) clean += fmt::format("/{}", part);
  return clean.empty() ? "/" : clean;
}

std::pair<std::string, std::string> SplitPath(const std::string& path) {
  const size_t slash = path.rfind('/');
  return {slash == 0 ? "/" : path.substr(0, slash), path.substr(slash + 1)};
}

absl::StatusOr<BoxFiles> BoxFiles::Open(SandboxManager* sandboxes, const std::string& id) {
  ASSIGN_OR_RETURN(SandboxManager::Lease lease, sandboxes->Use(id));
  return BoxFiles(sandboxes, std::move(lease));
}

absl::StatusOr<std::string> BoxFiles::Path(std::string_view path) const {
  if (path.find('\0') != std::string_view::npos || path.size() > kPathBytesMax)
    return absl::InvalidArgumentError("path is too long, or has a NUL byte");
  const std::string& dir = lease_.spec->working_dir();
  return CleanPath(path, dir.empty() ? std::string_view(kWorkingDirDefault) : dir);
}

absl::StatusOr<sandbox::FileInfo> BoxFiles::Stat(const std::string& path) const {
  const auto [parent, name] = SplitPath(path);
  ASSIGN_OR_RETURN(const std::vector<sandbox::FileInfo> entries,
                   lease_.substrate->ListDir(lease_.ref(), parent));
  sandbox::FileInfo root;
  root.set_mode(S_IFDIR | 0755);
  if (name.empty()) return root;
  for (const sandbox::FileInfo& entry : entries) {
    if (entry.name() == name) return entry;
  }
  return absl::NotFoundError(fmt::format("{} does not exist", path));
}

bool BoxFiles::IsDirectory(const std::string& path) const {
  return lease_.substrate->ListDir(lease_.ref(), path).ok();
}

absl::StatusOr<std::vector<sandbox::FileInfo>> BoxFiles::List(const std::string& path) const {
  ASSIGN_OR_RETURN(std::vector<sandbox::FileInfo> entries,
                   lease_.substrate->ListDir(lease_.ref(), path));
  std::sort(entries.begin(), entries.end(),
            [](const auto& a, const auto& b) { return a.name() < b.name(); });
  return entries;
}

absl::Status BoxFiles::Read(const std::string& path,
                            const std::function<absl::Status(std::string_view)>& chunk) const {
  return lease_.substrate->ReadFile(lease_.ref(), path, chunk);
}

absl::Status BoxFiles::Write(const std::string& path,
                             const std::function<absl::StatusOr<std::string>()>& next) const {
  const std::string parent = SplitPath(path).first;
  ASSIGN_OR_RETURN(const auto change, sandboxes_->BeginChange(lease_.id));
  if (parent != "/") RETURN_IF_ERROR(lease_.substrate->MakeDir(lease_.ref(), parent));
  return lease_.substrate->WriteFile(lease_.ref(), path, 0644, next);
}

absl::Status BoxFiles::MakeDir(const std::string& path) const {
  ASSIGN_OR_RETURN(const auto change, sandboxes_->BeginChange(lease_.id));
  return lease_.substrate->MakeDir(lease_.ref(), path);
}

absl::Status BoxFiles::Move(const std::string& from, const std::string& to) const {
  ASSIGN_OR_RETURN(const auto change, sandboxes_->BeginChange(lease_.id));
  return lease_.substrate->Move(lease_.ref(), from, to);
}

absl::Status BoxFiles::Remove(const std::string& path) const {
  ASSIGN_OR_RETURN(const auto change, sandboxes_->BeginChange(lease_.id));
  const absl::Status status = lease_.substrate->Remove(lease_.ref(), path);
  return absl::IsNotFound(status) ? absl::OkStatus() : status;
}

}  // namespace reprise::sandboxd::http
