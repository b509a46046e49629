#include "rollout/retention.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <optional>
#include <set>
#include <utility>

#include "absl/time/time.h"
#include "base/clock.h"
#include "base/failpoint.h"
#include "base/fd.h"
#include "base/format.h"
#include "base/log.h"
#include "base/status_macros.h"
#include "replay/sha256.h"
#include "replay/trajectory_state.h"
#include "rollout/identity.h"
#include "rollout/record.h"
#include "rollout/text.h"

namespace reprise::rollout {
namespace {

// Bytes of entries that were moved out of the journal before the disk gets them back.
constexpr uint64_t kReclaimBytes = 64ull << 20;

}  // namespace

absl::Status CheckRetention(const RetentionOptions& options) {
  if (options.after_s < 0 || options.bytes_max < 0 || options.every_s < 1)
    return absl::InvalidArgumentError("retention: a number is negative, or every_s is not above 0");
  if (options.policy != Retention::kKeep && options.after_s == 0 && options.bytes_max == 0) {
    return absl::InvalidArgumentError(
        "retention is export or drop and nothing says when: give --retention-after or "
        "--retention-bytes");
  }
  return absl::OkStatus();
}

// A trajectory in a file, with what decides whether it stays.
struct Retainer::Ended {
  std::string id;
  std::shared_ptr<JobRun> run;
  std::optional<size_t> index;  // of its place in the job, if it is what stands there
  int64_t sealed_us = 0;
  int64_t dropped_us = 0;  // not 0: it is dropped already
  uint64_t bytes = 0;
  bool settled = false;  // nobody may still ask for it as part of its job
};

Retainer::Retainer(RetentionOptions options, JobTable* jobs, replay::TrajectoryLog* log,
                   Sandboxes* sandboxes)
    : options_(std::move(options)), jobs_(jobs), log_(log), sandboxes_(sandboxes), thread_([this] {
        Run();
      }) {}

Retainer::~Retainer() {
  {
    absl::MutexLock lock(&mutex_);
    stopping_ = true;
  }
  thread_.join();
}

bool Retainer::stopping() const {
  absl::MutexLock lock(&mutex_);
  return stopping_;
}

void Retainer::Run() {
  while (true) {
    if (absl::Status passed = Pass(); !passed.ok())
      base::LogWarn(fmt::format("ended trajectories stay as they are: {}", Message(passed)));
    absl::MutexLock lock(&mutex_);
    if (mutex_.AwaitWithTimeout(absl::Condition(&stopping_), absl::Seconds(options_.every_s)))
      return;
  }
}

Retention Retainer::PolicyOf(const JobRun& run) const {
  if (run.external()) return options_.policy;
  // What its job file says is not known: nothing of it goes.
  if (run.spec() == nullptr) return Retention::kKeep;
  return run.spec()->retention == Retention::kDaemon ? options_.policy : run.spec()->retention;
}

absl::StatusOr<bool> Retainer::NothingToDo(const journal::JobRecord& record) {
  const bool over = record.state() == journal::JOB_STATE_COMPLETED ||
                    record.state() == journal::JOB_STATE_CANCELLED;
  if (!over || options_.after_s != 0 || options_.bytes_max != 0) return false;
  ASSIGN_OR_RETURN(const std::vector<std::string> ids, log_->List(record.job_id()));
  for (const std::string& id : ids) {
    ASSIGN_OR_RETURN(const journal::TrajectoryHead head, log_->Head(id));
    if (!head.has_summary()) return false;
  }
  return true;
}

absl::Status Retainer::Pass() {
  absl::MutexLock pass(&pass_mutex_);
  ASSIGN_OR_RETURN(const std::vector<journal::JobRecord> records, log_->ListJobs());
  std::vector<Ended> ended;
  std::map<std::string, int64_t> gone;  // jobs of which nothing is left, and since when
  for (const journal::JobRecord& record : records) {
    ASSIGN_OR_RETURN(const bool nothing, NothingToDo(record));
    if (nothing) continue;
    absl::StatusOr<std::shared_ptr<JobRun>> run = jobs_->Find(record.job_id());
    const size_t first = ended.size();
    const absl::Status compacted = run.ok() ? Compact(**run, &ended) : run.status();
    if (stopping()) return absl::OkStatus();
    if (!compacted.ok()) {
      base::LogWarn(fmt::format("trajectories of job {} stay as they are: {}", record.job_id(),
                                Message(compacted)));
      ended.resize(first);
      continue;
    }
    int64_t last_us = 0;
    bool whole = (*run)->AllSealed() && ended.size() > first;
    for (size_t i = first; i < ended.size(); ++i) {
      ended[i].run = *run;
      whole = whole && ended[i].dropped_us != 0;
      last_us = std::max(last_us, ended[i].dropped_us);
    }
    if (whole) gone[record.job_id()] = last_us;
  }
  std::sort(ended.begin(), ended.end(),
            [](const Ended& a, const Ended& b) { return a.sealed_us < b.sealed_us; });
  int64_t bytes = 0;
  for (const Ended& each : ended) bytes += each.dropped_us != 0 ? 0 : each.bytes;
  const int64_t now = base::WallMicros();
  for (const Ended& each : ended) {
    if (stopping()) return absl::OkStatus();
    if (each.dropped_us != 0 || !each.settled) continue;
    const bool old = options_.after_s != 0 && now - each.sealed_us > options_.after_s * 1'000'000;
    const bool too_much = options_.bytes_max != 0 && bytes > options_.bytes_max;
    if ((!old && !too_much) || PolicyOf(*each.run) == Retention::kKeep) continue;
    if (absl::Status dropped = Drop(each); !dropped.ok()) {
      base::LogWarn(fmt::format("trajectory {} stays: {}", each.id, Message(dropped)));
      continue;
    }
    bytes -= static_cast<int64_t>(each.bytes);
  }
  for (const auto& [job_id, last_us] : gone) {
    if (now - last_us <= options_.after_s * 1'000'000) continue;
    const absl::Status forgotten = jobs_->Forget(job_id);
    if (!forgotten.ok() && !absl::IsFailedPrecondition(forgotten)) return forgotten;
  }
  if (deleted_bytes_ < kReclaimBytes) return absl::OkStatus();
  deleted_bytes_ = 0;
  return log_->Reclaim();
}

absl::Status Retainer::Compact(JobRun& run, std::vector<Ended>* ended) {
  const journal::JobState state = run.state();
  const bool over = state == journal::JOB_STATE_COMPLETED || state == journal::JOB_STATE_CANCELLED;
  ASSIGN_OR_RETURN(const std::vector<journal::Delivery> deliveries, log_->Deliveries(run.id()));
  std::set<uint32_t> acknowledged;
  for (const journal::Delivery& delivery : deliveries) {
    if (delivery.acknowledged_us() != 0) acknowledged.insert(delivery.group());
  }
  for (size_t i = 0; i < run.size(); ++i) {
    if (stopping()) return absl::OkStatus();
    // A job whose groups are leased is asked for until each of them is acknowledged.
    const size_t position = i / run.group_size();
    const bool asked = !run.IsDropped(position) && (run.external() || !deliveries.empty());
    const bool known = run.spec() != nullptr || run.external();
    // One place goes as a whole: a fork is made from what its parent's calls were.
    const bool settled = known && (over || run.external()) && run.IsWhole(i) &&
                         (!asked || acknowledged.contains(run.group_at(position)));
    std::vector<std::string> ids = run.replaced_ids(i);
    const size_t own = ids.size();
    if (run.IsSealed(i)) {
      for (std::string& id : run.record_ids(i)) ids.push_back(std::move(id));
    }
    const size_t first = ended->size();
    for (size_t k = 0; k < ids.size(); ++k) {
      Ended one;
      RETURN_IF_ERROR(CompactOne(ids[k], &one));
      if (one.id.empty()) continue;
      if (k == own) one.index = i;
      one.settled = settled;
      ended->push_back(std::move(one));
    }
    int64_t last_us = 0;
    for (size_t k = first; k < ended->size(); ++k)
      last_us = std::max(last_us, (*ended)[k].sealed_us);
    for (size_t k = first; k < ended->size(); ++k) (*ended)[k].sealed_us = last_us;
  }
  return absl::OkStatus();
}

absl::Status Retainer::CompactOne(const std::string& id, Ended* ended) {
  absl::StatusOr<journal::TrajectoryHead> head = log_->Head(id);
  if (absl::IsNotFound(head.status())) return absl::OkStatus();
  RETURN_IF_ERROR(head.status());
  if (!head->has_summary()) {
    ASSIGN_OR_RETURN(const std::vector<journal::TrajectoryEntry> entries, log_->Read(id));
    // What does not add up to a trajectory stays where it is.
    ASSIGN_OR_RETURN(const replay::TrajectoryState folded, replay::Fold(entries));
    if (!folded.sealed) return absl::OkStatus();  // a branch that goes on
    RETURN_IF_ERROR(log_->Compact(id, ToRecord(folded)));
    for (const journal::TrajectoryEntry& entry : entries) deleted_bytes_ += entry.ByteSizeLong();
    head = log_->Head(id);
    RETURN_IF_ERROR(head.status());
  }
  ended->id = id;
  ended->sealed_us = head->summary().sealed_us();
  ended->dropped_us = head->dropped_us();
  ended->bytes = head->bytes();
  return absl::OkStatus();
}

absl::Status Retainer::Drop(const Ended& ended) {
  std::string exported;
  if (PolicyOf(*ended.run) == Retention::kExport) {
    ASSIGN_OR_RETURN(const std::vector<journal::TrajectoryEntry> entries, log_->Read(ended.id));
    ASSIGN_OR_RETURN(const replay::TrajectoryState state, replay::Fold(entries));
    ASSIGN_OR_RETURN(const std::string record,
                     ExportRecord(state, *ended.run, /*without_timing=*/false));
    RETURN_IF_ERROR(base::MakeDirs(options_.export_dir, 0700));
    // Ids have '/': the file is named as the archive names it.
    exported =
        fmt::format("{}/{}.json", options_.export_dir, replay::Hex(replay::Sha256Of(ended.id)));
    RETURN_IF_ERROR(base::WriteFileAtomic(exported, record + "\n"));
    base::FailPoint("retention.exported");
  }
  // The calls first: as long as the trajectory is there, the next look asks again.
  RETURN_IF_ERROR(sandboxes_->Forget(SandboxId(ended.id)));
  RETURN_IF_ERROR(sandboxes_->Forget(JudgeSandboxId(ended.id)));
  base::FailPoint("retention.calls");
  RETURN_IF_ERROR(log_->Drop(ended.id, exported));
  if (ended.index.has_value()) ended.run->Dropped(*ended.index);
  return absl::OkStatus();
}

}  // namespace reprise::rollout
