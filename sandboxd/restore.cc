// Sandboxes that are made again: a lost one from its newest snapshot and the log, one under an
// interrupted call from the snapshot before that call. The new incarnation becomes the sandbox with
// one durable record; until then it is nobody's, and a kill leaves it to the tier to remove.
#include <algorithm>
#include <optional>
#include <utility>

#include <fmt/format.h>

#include "absl/cleanup/cleanup.h"
#include "base/failpoint.h"
#include "base/format.h"
#include "base/ids.h"
#include "base/log.h"
#include "base/status_macros.h"
#include "sandboxd/limits.h"
#include "sandboxd/rerun.h"
#include "sandboxd/sandbox_manager.h"
#include "sandboxd/spec.h"

namespace reprise::sandboxd {
namespace {

namespace journal = replay::journal;

constexpr char kUnlogged[] =
    "since its newest snapshot it was changed in a way that the log does not hold (files written "
    "from outside, or input given to a running call)";

}  // namespace

// One change of a sandbox that the log has not; alive while it is under way.
class SandboxManager::Change {
 public:
  explicit Change(EntryPtr entry) : entry_(std::move(entry)) {}
  ~Change() {
    absl::MutexLock lock(&entry_->mutex);
    --entry_->changes;
  }
  Change(const Change&) = delete;
  Change& operator=(const Change&) = delete;

 private:
  const EntryPtr entry_;
};

absl::StatusOr<std::shared_ptr<void>> SandboxManager::BeginChange(const std::string& id) {
  EntryPtr entry = Lookup(id);
  if (entry == nullptr) return Absent(id);
  std::shared_ptr<void> change;
  bool known;
  {
    absl::MutexLock lock(&entry->mutex);
    absl::StatusOr<Substrate*> tier = TierOf(entry->record.spec().tier());
    if (tier.ok() && !(*tier)->KeepsState()) return change;
    ++entry->changes;
    ++entry->changes_begun;
    known = entry->record.unlogged();
    change = std::make_shared<Change>(entry);
  }
  if (known) return change;
  absl::MutexLock verb(&entry->verb);
  {
    absl::MutexLock lock(&entry->mutex);
    if (entry->record.unlogged()) return change;
  }
  RETURN_IF_ERROR(
      PutRecord(entry.get(), [](journal::SandboxRecord* record) { record->set_unlogged(true); }));
  return change;
}

absl::StatusOr<sandbox::RestoreResponse> SandboxManager::Restore(const std::string& id,
                                                                 bool quiet) {
  RETURN_IF_ERROR(base::CheckId(id, "sandbox_id", /*allow_slash=*/true));
  EntryPtr entry = Lookup(id);
  if (entry == nullptr) return Absent(id);
  absl::MutexLock verb(&entry->verb);
  RETURN_IF_ERROR(Reach(entry.get()));
  sandbox::RestoreResponse response;
  {
    absl::MutexLock lock(&entry->mutex);
    if (IsLive(entry->record.state()) && !entry->stopping) {
      *response.mutable_sandbox() = ToSandbox(entry->record);
      return response;
    }
    if (entry->record.state() != sandbox::SANDBOX_STATE_LOST || entry->stopping) {
      return absl::FailedPreconditionError(
          fmt::format("sandbox {} is {}", id, sandbox::SandboxState_Name(entry->record.state())));
    }
    if (entry->record.unlogged()) {
      return absl::FailedPreconditionError(
          fmt::format("sandbox {} cannot be made again: {}", id, kUnlogged));
    }
  }
  if (!quiet) {
    return absl::FailedPreconditionError(
        fmt::format("sandbox {} has an unfinished call: send its Execute again first", id));
  }
  response.set_was_lost(true);
  std::optional<journal::SnapshotRecord> newest;
  ASSIGN_OR_RETURN(const std::vector<journal::SnapshotRecord> snapshots, log_->ListSnapshots(id));
  for (const journal::SnapshotRecord& snapshot : snapshots) {
    if (snapshot.quiet() && !snapshot.digest().empty()) newest = snapshot;
  }
  ASSIGN_OR_RETURN(std::vector<replay::CallLog::Found> calls, log_->ListCalls(id));
  if (newest.has_value()) {
    response.set_snapshot_id(newest->snapshot_id());
    std::erase_if(calls, [&](const auto& call) { return call.intent.ordinal() < newest->calls(); });
  } else {
    ASSIGN_OR_RETURN(const journal::SandboxRecord record, log_->GetSandbox(id));
    ASSIGN_OR_RETURN(std::vector<replay::CallLog::Found> inherited, Inherited(record));
    calls.insert(calls.begin(), inherited.begin(), inherited.end());
  }
  std::erase_if(calls, [](const auto& call) {
    return call.result.has_value() && LeftNothing(call.result->result());
  });
  // What was cut off when it was lost is not in it: the sandbox comes back as it was before.
  while (!calls.empty() && calls.back().result.has_value() &&
         (calls.back().result->result().outcome() == sandbox::OUTCOME_SANDBOX_LOST ||
          calls.back().result->result().outcome() == sandbox::OUTCOME_INTERRUPTED)) {
    calls.pop_back();
  }
  RETURN_IF_ERROR(MakeAgain(entry.get(), newest.has_value() ? newest->image() : "", calls));
  response.set_run_again(calls.size());
  // The calls before this are not needed from here on; nor can those that were cut off be.
  sandbox::SnapshotRequest snapshot;
  snapshot.set_sandbox_id(id);
  snapshot.set_snapshot_id(kRestoreSnapshots + base::RandomHex(8));
  if (absl::StatusOr<sandbox::SnapshotInfo> taken =
          SnapshotEntry(entry.get(), snapshot, /*quiet=*/true, "");
      !taken.ok()) {
    base::LogWarn(fmt::format("sandbox {} is back and has no new snapshot: {}", id,
                              taken.status().message()));
  }
  absl::MutexLock lock(&entry->mutex);
  *response.mutable_sandbox() = ToSandbox(entry->record);
  return response;
}

absl::Status SandboxManager::RollBack(const std::string& id, const std::string& snapshot_id) {
  EntryPtr entry = Lookup(id);
  if (entry == nullptr) return Absent(id);
  absl::MutexLock verb(&entry->verb);
  RETURN_IF_ERROR(Reach(entry.get()));
  {
    absl::MutexLock lock(&entry->mutex);
    const sandbox::SandboxState state = entry->record.state();
    if (entry->stopping || (!IsLive(state) && state != sandbox::SANDBOX_STATE_LOST)) {
      return absl::FailedPreconditionError(fmt::format("sandbox {} was stopped", id));
    }
    if (entry->record.unlogged()) return absl::FailedPreconditionError(kUnlogged);
    if (!entry->secrets_known) {
      return absl::UnavailableError(fmt::format(
          "sandbox {} has secret variables that did not outlive the daemon: send its Create again",
          id));
    }
  }
  ASSIGN_OR_RETURN(const std::vector<journal::SnapshotRecord> snapshots, log_->ListSnapshots(id));
  for (const journal::SnapshotRecord& snapshot : snapshots) {
    if (snapshot.snapshot_id() == snapshot_id && !snapshot.digest().empty())
      return MakeAgain(entry.get(), snapshot.image(), {});
  }
  return absl::NotFoundError(fmt::format("snapshot {} of sandbox {} is gone", snapshot_id, id));
}

absl::Status SandboxManager::RunAll(Substrate* substrate, const SandboxRef& made,
                                    const std::vector<replay::CallLog::Found>& calls) {
  for (const replay::CallLog::Found& call : calls) {
    base::FailPoint("restore.call");
    RETURN_IF_ERROR(RunAgain(
        substrate, made, log_, call,
        ResolveRequest(call.intent.request(), *made.spec, DefaultLimits(made.spec->tier())),
        [this] { return stopping_.load(); }));
  }
  return absl::OkStatus();
}

absl::Status SandboxManager::MakeAgain(Entry* entry, const std::string& image,
                                       const std::vector<replay::CallLog::Found>& calls) {
  std::shared_ptr<const sandbox::SandboxSpec> known;
  journal::SandboxRecord was;
  {
    absl::MutexLock lock(&entry->mutex);
    if (!entry->secrets_known) {
      return absl::FailedPreconditionError(fmt::format(
          "sandbox {} has secret variables that did not outlive the daemon: send its Create again",
          entry->id));
    }
    known = entry->spec;
    was = entry->record;
  }
  ASSIGN_OR_RETURN(Substrate* const substrate, TierOf(was.spec().tier()));
  ASSIGN_OR_RETURN(sandbox::SandboxSpec spec, ResolveBinds(*known, options_.bind_roots));
  auto resolved = std::make_shared<const sandbox::SandboxSpec>(spec);
  if (!image.empty()) spec.set_image(image);
  std::vector<sandbox::StepTime> steps;
  const absl::ReaderMutexLock images(&images_mutex_);
  ASSIGN_OR_RETURN(const std::shared_ptr<void> admission, Admit(entry->id, spec));
  ASSIGN_OR_RETURN(const std::string placement, substrate->CreateSandbox(entry->id, spec, &steps));
  const SandboxRef made{entry->id, resolved.get(), placement};
  absl::Cleanup drop = [&] {
    if (absl::Status stopped = substrate->StopSandbox(made); !stopped.ok())
      base::LogWarn(fmt::format("sandbox {}: {}", entry->id, stopped.message()));
  };
  RETURN_IF_ERROR(RunAll(substrate, made, calls));
  base::FailPoint("restore.made");
  RETURN_IF_ERROR(PutRecord(entry, [&](journal::SandboxRecord* record) {
    record->set_state(sandbox::SANDBOX_STATE_RUNNING);
    record->set_message("");
    record->set_boot_id(options_.boot_id);
    record->set_placement(placement);
    record->set_unlogged(false);
    record->set_restored_from(spec.image());
  }));
  std::move(drop).Cancel();
  {
    absl::MutexLock lock(&entry->mutex);
    entry->spec = resolved;
    entry->unreached = false;
  }
  base::FailPoint("restore.recorded");
  base::LogInfo(fmt::format("sandbox {} was made again from {}, and {} calls run again", entry->id,
                            spec.image(), calls.size()));
  // What is left of the incarnation before, alive or dead.
  if (absl::Status stopped = substrate->StopSandbox({entry->id, resolved.get(), was.placement()});
      !stopped.ok()) {
    base::LogWarn(
        fmt::format("sandbox {}: its former incarnation stays: {}", entry->id, stopped.message()));
  }
  return absl::OkStatus();
}

}  // namespace reprise::sandboxd
