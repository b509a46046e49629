// Snapshots of sandboxes and forks from them. A record without a digest is durable before the tier
// makes anything, so that whatever a kill leaves behind is known and taken away by the next daemon;
// one with a digest is durable before anybody is told.
#include <algorithm>
#include <utility>

#include <fmt/format.h>

#include "base/clock.h"
#include "base/failpoint.h"
#include "base/format.h"
#include "base/ids.h"
#include "base/log.h"
#include "base/status_macros.h"
#include "replay/sha256.h"
#include "sandboxd/sandbox_manager.h"
#include "sandboxd/spec.h"

namespace reprise::sandboxd {
namespace {

namespace journal = replay::journal;

constexpr size_t kReadableIdBytesMax = 150;  // longer ids become a hash in an image's name

std::string AutomaticName(const std::string& sandbox_id, uint64_t number) {
  if (sandbox_id.size() <= kReadableIdBytesMax)
    return fmt::format("{}{}:{}", kSnapshotImagePrefix, sandbox_id, number);
  replay::Sha256 hash;
  hash.Add(sandbox_id);
  return fmt::format("{}sha256-{}:{}", kSnapshotImagePrefix, replay::Hex(hash.Finish()), number);
}

// Taken without being asked for as such.
bool IsOwn(const std::string& snapshot_id) {
  return snapshot_id.starts_with(kCallSnapshots) || snapshot_id.starts_with(kForkSnapshots) ||
         snapshot_id.starts_with(kRestoreSnapshots);
}

std::string ForkSnapshotId(const std::string& new_id) { return kForkSnapshots + new_id; }

sandbox::SnapshotInfo ToInfo(const journal::SnapshotRecord& record) {
  sandbox::SnapshotInfo info;
  info.set_sandbox_id(record.sandbox_id());
  info.set_snapshot_id(record.snapshot_id());
  info.mutable_image()->set_name(record.image());
  info.mutable_image()->set_digest(record.digest());
  info.mutable_image()->set_size_bytes(record.size_bytes());
  info.mutable_image()->set_layers(record.layers());
  info.set_calls(record.calls());
  info.set_quiet(record.quiet());
  info.set_made_us(record.made_us());
  info.set_stored_bytes(record.stored_bytes());
  info.set_call_id(record.call_id());
  return info;
}

}  // namespace

absl::StatusOr<sandbox::SnapshotInfo> SandboxManager::Snapshot(
    const sandbox::SnapshotRequest& request, bool quiet, const std::string& call_id) {
  RETURN_IF_ERROR(base::CheckId(request.sandbox_id(), "sandbox_id", /*allow_slash=*/true));
  if (!request.snapshot_id().empty())
    RETURN_IF_ERROR(base::CheckId(request.snapshot_id(), "snapshot_id", /*allow_slash=*/true));
  if (IsOwn(request.snapshot_id())) {
    return absl::InvalidArgumentError(
        fmt::format("snapshot_id begins with {}/, which is kept for the daemon's own",
                    request.snapshot_id().substr(0, request.snapshot_id().find('/'))));
  }
  if (request.name().starts_with(kSnapshotImagePrefix)) {
    return absl::InvalidArgumentError(
        fmt::format("name begins with {}, which is kept for names that the daemon chooses",
                    kSnapshotImagePrefix));
  }
  EntryPtr entry = Lookup(request.sandbox_id());
  if (entry == nullptr) return Absent(request.sandbox_id());
  absl::MutexLock verb(&entry->verb);
  return SnapshotEntry(entry.get(), request, quiet, call_id);
}

absl::StatusOr<sandbox::SnapshotInfo> SandboxManager::SnapshotEntry(
    Entry* entry, const sandbox::SnapshotRequest& request, bool quiet, const std::string& call_id) {
  const std::string& id = entry->id;
  ASSIGN_OR_RETURN(const std::vector<journal::SnapshotRecord> records, log_->ListSnapshots(id));
  journal::SnapshotRecord record;
  record.set_sandbox_id(id);
  record.set_snapshot_id(request.snapshot_id().empty() ? fmt::format("snap-{}", base::RandomHex(8))
                                                       : request.snapshot_id());
  record.set_number(records.empty() ? 0 : records.back().number() + 1);
  // One of an attempt that did not get as far as its INTENT is not this one's: calls may have run
  // in between. So each has an id of its own.
  if (!call_id.empty())
    record.set_snapshot_id(fmt::format("{}{}", kCallSnapshots, record.number()));
  for (const journal::SnapshotRecord& earlier : records) {
    if (earlier.snapshot_id() != record.snapshot_id()) continue;
    if (earlier.digest().empty()) {  // one that could not be finished or removed yet
      record.set_number(earlier.number());
      continue;
    }
    if (!request.name().empty() && request.name() != earlier.image()) {
      return absl::FailedPreconditionError(
          fmt::format("divergence: name differs: was {}, is {}; snapshot id \"{}\" was used before "
                      "with another request",
                      earlier.image(), request.name(), record.snapshot_id()));
    }
    sandbox::SnapshotInfo info = ToInfo(earlier);
    info.set_existed(true);
    return info;
  }
  RETURN_IF_ERROR(options_.journal_health());
  RETURN_IF_ERROR(Reach(entry));
  {
    absl::MutexLock lock(&entry->mutex);
    if (entry->stopping || !IsLive(entry->record.state())) {
      return absl::FailedPreconditionError(
          fmt::format("sandbox {} has no files to keep: it is {}", id,
                      sandbox::SandboxState_Name(entry->record.state())));
    }
  }
  ASSIGN_OR_RETURN(const Lease lease, LeaseOf(entry));
  record.set_image(request.name().empty() ? AutomaticName(id, record.number()) : request.name());
  const sandbox::TierInfo tier = lease.substrate->Describe();
  auto can = tier.verbs().find("snapshot");
  if (can == tier.verbs().end() || can->second != "yes")
    return lease.substrate->SnapshotSandbox(lease.ref(), record.image()).status();
  if (!request.name().empty()) RETURN_IF_ERROR(CheckFree(lease.substrate, request.name()));

  ASSIGN_OR_RETURN(const uint64_t calls, log_->CountCalls(id));
  record.set_calls(calls);
  record.set_quiet(quiet);
  record.set_call_id(call_id);
  bool unchanged;
  uint64_t changes_begun;
  {
    absl::MutexLock lock(&entry->mutex);
    unchanged = entry->changes == 0;
    changes_begun = entry->changes_begun;
  }
  RETURN_IF_ERROR(log_->PutSnapshot(record));
  base::FailPoint("snapshot.pending");
  absl::StatusOr<SnapshotImage> made =
      lease.substrate->SnapshotSandbox(lease.ref(), record.image());
  if (!made.ok()) {
    if (absl::Status dropped = log_->DropSnapshot(id, record.number()); !dropped.ok())
      base::LogWarn(fmt::format("sandbox {}: {}", id, dropped.message()));
    return made.status();
  }
  base::FailPoint("snapshot.made");
  record.set_digest(made->image.digest());
  record.set_size_bytes(made->image.size_bytes());
  record.set_layers(made->image.layers());
  record.set_stored_bytes(made->stored_bytes);
  record.set_made_us(base::WallMicros());
  RETURN_IF_ERROR(log_->PutSnapshot(record));
  base::FailPoint("snapshot.done");
  {
    absl::MutexLock lock(&entry->mutex);
    unchanged = unchanged && changes_begun == entry->changes_begun && entry->record.unlogged();
  }
  // All that the log does not hold is in the snapshot.
  if (quiet && unchanged) {
    RETURN_IF_ERROR(
        PutRecord(entry, [](journal::SandboxRecord* changed) { changed->set_unlogged(false); }));
  }
  return ToInfo(record);
}

absl::StatusOr<std::string> SandboxManager::SnapshotBefore(const std::string& id,
                                                           const std::string& call_id) {
  EntryPtr entry = Lookup(id);
  if (entry == nullptr) return Absent(id);
  absl::MutexLock verb(&entry->verb);
  ASSIGN_OR_RETURN(const Lease lease, LeaseOf(entry.get()));
  if (!lease.substrate->KeepsState()) return std::string();
  sandbox::SnapshotRequest request;
  request.set_sandbox_id(id);
  ASSIGN_OR_RETURN(const sandbox::SnapshotInfo taken,
                   SnapshotEntry(entry.get(), request, /*quiet=*/true, call_id));
  Prune(id, lease.spec->tier());
  return taken.snapshot_id();
}

absl::Status SandboxManager::CheckFree(Substrate* substrate, const std::string& image) const {
  ASSIGN_OR_RETURN(const std::vector<sandbox::Image> images, substrate->ListImages());
  for (const sandbox::Image& other : images) {
    if (other.name() == image) {
      return absl::AlreadyExistsError(
          fmt::format("there is an image '{}': remove it first, or choose another name", image));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<sandbox::ListSnapshotsResponse> SandboxManager::ListSnapshots(
    const std::string& id) {
  RETURN_IF_ERROR(Get(id).status());
  ASSIGN_OR_RETURN(const std::vector<journal::SnapshotRecord> records, log_->ListSnapshots(id));
  sandbox::ListSnapshotsResponse response;
  for (const journal::SnapshotRecord& record : records) {
    if (!record.digest().empty()) *response.add_snapshots() = ToInfo(record);
  }
  return response;
}

absl::StatusOr<std::vector<sandbox::SnapshotInfo>> SandboxManager::AllSnapshots() {
  ASSIGN_OR_RETURN(const std::vector<journal::SnapshotRecord> records, log_->ListSnapshots(""));
  std::vector<sandbox::SnapshotInfo> all;
  for (const journal::SnapshotRecord& record : records) {
    if (!record.digest().empty() && !IsOwn(record.snapshot_id())) all.push_back(ToInfo(record));
  }
  return all;
}

absl::StatusOr<sandbox::CreateResponse> SandboxManager::Fork(const sandbox::ForkRequest& request,
                                                             bool quiet) {
  const std::string new_id =
      request.new_id().empty() ? fmt::format("sb-{}", base::RandomHex(8)) : request.new_id();
  RETURN_IF_ERROR(base::CheckId(new_id, "new_id", /*allow_slash=*/true));
  // What a snapshot id may not hold, the id of a sandbox must not either.
  RETURN_IF_ERROR(base::CheckId(ForkSnapshotId(new_id), "new_id", /*allow_slash=*/true));
  ASSIGN_OR_RETURN(const sandbox::Sandbox source, Get(request.sandbox_id()));
  if (absl::StatusOr<journal::SandboxRecord> made = log_->GetSandbox(new_id); made.ok()) {
    ASSIGN_OR_RETURN(const auto records, log_->ListSnapshots(source.id()));
    for (const journal::SnapshotRecord& record : records) {
      if (record.snapshot_id() != ForkSnapshotId(new_id) || record.image() != made->spec().image())
        continue;
      sandbox::CreateResponse response;
      response.set_existed(true);
      *response.mutable_sandbox() = ToSandbox(*made);
      return response;
    }
    return absl::FailedPreconditionError(fmt::format(
        "sandbox {} exists and is no fork of {}; choose another id", new_id, source.id()));
  }
  sandbox::CreateRequest create;
  create.set_sandbox_id(new_id);
  {
    EntryPtr entry = Lookup(source.id());
    if (entry == nullptr) return Absent(source.id());
    absl::MutexLock verb(&entry->verb);
    sandbox::SnapshotRequest snapshot;
    snapshot.set_sandbox_id(source.id());
    snapshot.set_snapshot_id(ForkSnapshotId(new_id));
    ASSIGN_OR_RETURN(const sandbox::SnapshotInfo taken,
                     SnapshotEntry(entry.get(), snapshot, quiet, ""));
    absl::MutexLock lock(&entry->mutex);
    if (!entry->secrets_known) {
      return absl::FailedPreconditionError(fmt::format(
          "sandbox {} has secret variables that did not outlive the daemon: send its Create again",
          source.id()));
    }
    *create.mutable_spec() = CurrentSpec(entry->record);
    *create.mutable_spec()->mutable_env() = entry->spec->env();
    create.mutable_spec()->set_image(taken.image().name());
  }
  Merge(request, create.mutable_spec());
  return Create(create);
}

absl::Status SandboxManager::DropUnfinished(const std::string& id, sandbox::Tier tier) {
  ASSIGN_OR_RETURN(const std::vector<journal::SnapshotRecord> records, log_->ListSnapshots(id));
  for (const journal::SnapshotRecord& record : records) {
    if (!record.digest().empty()) continue;
    ASSIGN_OR_RETURN(Substrate* const substrate, TierOf(tier));
    const absl::Status removed = substrate->RemoveImage(record.image());
    if (!removed.ok() && !absl::IsNotFound(removed)) return removed;
    base::LogInfo(fmt::format("snapshot {} of sandbox {} was not finished: removed",
                              record.snapshot_id(), id));
    RETURN_IF_ERROR(log_->DropSnapshot(id, record.number()));
  }
  return absl::OkStatus();
}

// The last daemon may have died while a sandbox stood still for its snapshot.
absl::Status SandboxManager::GoOn(Entry* entry) {
  journal::SandboxRecord record;
  {
    absl::MutexLock lock(&entry->mutex);
    record = entry->record;
  }
  ASSIGN_OR_RETURN(const std::vector<journal::SnapshotRecord> snapshots,
                   log_->ListSnapshots(entry->id));
  const bool unfinished = std::any_of(snapshots.begin(), snapshots.end(),
                                      [](const auto& each) { return each.digest().empty(); });
  if (!unfinished) return absl::OkStatus();
  if (record.state() == sandbox::SANDBOX_STATE_RUNNING) {
    ASSIGN_OR_RETURN(const Lease lease, LeaseOf(entry));
    RETURN_IF_ERROR(lease.substrate->ResumeSandbox(lease.ref()));
  }
  return DropUnfinished(entry->id, record.spec().tier());
}

}  // namespace reprise::sandboxd
