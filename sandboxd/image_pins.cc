// Which images must stay: those that a sandbox was made from, and the snapshots that one can be
// made again from. What goes is first marked as unfinished in the journal, so that a kill at any
// point leaves it to the next daemon to go on.
#include <algorithm>
#include <set>
#include <utility>
#include <vector>

#include <fmt/format.h>

#include "base/failpoint.h"
#include "base/format.h"
#include "base/log.h"
#include "base/status_macros.h"
#include "sandboxd/sandbox_manager.h"
#include "sandboxd/spec.h"

namespace reprise::sandboxd {
namespace {

namespace journal = replay::journal;

}  // namespace

std::string SandboxManager::UserOf(const std::string& image) {
  std::vector<EntryPtr> entries;
  {
    absl::MutexLock lock(&mutex_);
    for (const auto& [id, entry] : entries_) entries.push_back(entry);
  }
  for (const EntryPtr& entry : entries) {
    absl::MutexLock lock(&entry->mutex);
    if (entry->record.state() == sandbox::SANDBOX_STATE_UNSPECIFIED ||
        entry->record.state() == sandbox::SANDBOX_STATE_STOPPED)
      continue;
    if (entry->record.spec().image() == image || entry->record.restored_from() == image)
      return entry->id;
  }
  return "";
}

absl::Status SandboxManager::RemoveImage(const std::string& image,
                                         const std::function<absl::Status()>& remove) {
  absl::MutexLock lock(&images_mutex_);
  if (const std::string user = UserOf(image); !user.empty()) {
    return absl::FailedPreconditionError(
        fmt::format("image {} stays: sandbox {} was made from it; stop that first", image, user));
  }
  ASSIGN_OR_RETURN(const std::vector<journal::SnapshotRecord> records, log_->ListSnapshots(""));
  for (const journal::SnapshotRecord& record : records) {
    if (record.image() != image || Lookup(record.sandbox_id()) == nullptr) continue;
    return absl::FailedPreconditionError(
        fmt::format("image {} stays: it is snapshot {} of sandbox {}, which may be made again from "
                    "it; stop that first",
                    image, record.snapshot_id(), record.sandbox_id()));
  }
  return RemoveUnused(image, records, remove);
}

absl::Status SandboxManager::RemoveUnused(const std::string& image,
                                          const std::vector<journal::SnapshotRecord>& records,
                                          const std::function<absl::Status()>& remove) {
  for (journal::SnapshotRecord record : records) {
    if (record.image() != image) continue;
    record.clear_digest();
    RETURN_IF_ERROR(log_->PutSnapshot(record));
  }
  base::FailPoint("snapshot.marked");
  const absl::Status removed = remove();
  if (!removed.ok() && !absl::IsNotFound(removed)) return removed;
  base::FailPoint("snapshot.removed");
  for (const journal::SnapshotRecord& record : records) {
    if (record.image() == image)
      RETURN_IF_ERROR(log_->DropSnapshot(record.sandbox_id(), record.number()));
  }
  return removed;
}

void SandboxManager::Prune(const std::string& id, sandbox::Tier tier) {
  const absl::Status pruned = [&]() -> absl::Status {
    ASSIGN_OR_RETURN(Substrate* const substrate, TierOf(tier));
    absl::MutexLock lock(&images_mutex_);
    ASSIGN_OR_RETURN(const std::vector<journal::SnapshotRecord> records, log_->ListSnapshots(id));
    size_t kept = Lookup(id) == nullptr ? 0 : std::max<size_t>(options_.snapshots_kept, 1);
    for (auto record = records.rbegin(); record != records.rend(); ++record) {
      if (record->digest().empty() || !record->image().starts_with(kSnapshotImagePrefix)) continue;
      const bool fork = record->snapshot_id().starts_with(kForkSnapshots);
      const bool own = !fork && record->quiet();
      if (own && kept > 0) {
        --kept;
        continue;
      }
      const bool asked_for = !fork && !record->snapshot_id().starts_with(kCallSnapshots) &&
                             !record->snapshot_id().starts_with(kRestoreSnapshots);
      if (asked_for || !UserOf(record->image()).empty()) continue;
      // A fork that is being made, or will be tried again.
      if (fork && Lookup(id) != nullptr &&
          absl::IsNotFound(
              log_->GetSandbox(record->snapshot_id().substr(sizeof(kForkSnapshots) - 1)).status()))
        continue;
      RETURN_IF_ERROR(RemoveUnused(record->image(), {*record},
                                   [&] { return substrate->RemoveImage(record->image()); }));
    }
    return absl::OkStatus();
  }();
  if (!pruned.ok() && !absl::IsNotFound(pruned))
    base::LogWarn(fmt::format("sandbox {}: old snapshots stay: {}", id, pruned.message()));
}

void SandboxManager::PruneAfter(const journal::SandboxRecord& stopped) {
  Prune(stopped.id(), stopped.spec().tier());
  // A fork's origin kept a snapshot for it.
  const std::string& image = stopped.spec().image();
  if (!image.starts_with(kSnapshotImagePrefix)) return;
  absl::StatusOr<std::vector<journal::SnapshotRecord>> records = log_->ListSnapshots("");
  if (!records.ok()) return;
  std::set<std::string> origins;
  for (const journal::SnapshotRecord& record : *records) {
    if (record.image() == image) origins.insert(record.sandbox_id());
  }
  for (const std::string& origin : origins) Prune(origin, stopped.spec().tier());
}

}  // namespace reprise::sandboxd
