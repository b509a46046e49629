#include "rollout/kv_files.h"

#include <unistd.h>

#include <fmt/format.h>

#include "base/fd.h"
#include "base/status_macros.h"
#include "rollout/text.h"

namespace reprise::rollout {
namespace {

constexpr uint64_t kMaxStateBytes = 1ull << 40;

}  // namespace

// Ids hold slashes: a file's name is the hash of its id.
std::string KvFiles::PathOf(const std::string& trajectory_id) const {
  std::string name;
  for (unsigned char byte : Sha256(trajectory_id)) name += fmt::format("{:02x}", byte);
  return fmt::format("{}/{}.kv", directory_, name);
}

bool KvFiles::Has(const std::string& trajectory_id) const {
  return !directory_.empty() && ::access(PathOf(trajectory_id).c_str(), R_OK) == 0;
}

absl::Status KvFiles::Save(const std::string& trajectory_id, std::string_view bytes) const {
  if (directory_.empty()) return absl::FailedPreconditionError("no directory for KV states");
  RETURN_IF_ERROR(base::MakeDirs(directory_, 0700));
  return base::WriteFileAtomic(PathOf(trajectory_id), bytes);
}

absl::StatusOr<std::string> KvFiles::Load(const std::string& trajectory_id) const {
  return base::ReadFile(PathOf(trajectory_id), kMaxStateBytes);
}

void KvFiles::Remove(const std::string& trajectory_id) const {
  if (!directory_.empty()) ::unlink(PathOf(trajectory_id).c_str());
}

}  // namespace reprise::rollout
