#include "rollout/job_run.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/status_macros.h"
#include "rollout/identity.h"
#include "rollout/text.h"

namespace reprise::rollout {

Summary Summarize(const replay::TrajectoryState& state) {
  Summary out;
  out.task_id = state.start.task_id();
  out.tokens = state.tokens.size();
  out.prompt = state.prompt_len();
  for (const replay::Segment& segment : state.segments) {
    if (segment.role == replay::Segment::Role::kSampled) out.sampled += segment.end - segment.begin;
  }
  out.calls = static_cast<uint32_t>(state.calls.size());
  if (state.reward) {
    out.has_reward = state.reward->has_value();
    out.reward = state.reward->value();
  }
  out.parent_id = state.start.fork().parent_id();
  out.at_step = state.start.fork().at_step();
  if (state.sealed) {
    out.status = state.sealed->status();
    out.stop_reason = state.sealed->stop_reason();
    out.failed = !out.has_reward;
    out.valid = replay::IsValid(state);
    out.retriable = replay::IsRetriable(*state.sealed);
    out.sealed_us = state.sealed->sealed_us();
  } else {
    out.status = "running";
  }
  return out;
}

journal::TrajectorySummary ToRecord(const replay::TrajectoryState& state) {
  const Summary summary = Summarize(state);
  journal::TrajectorySummary record;
  record.set_task_id(summary.task_id);
  record.set_status(summary.status);
  record.set_stop_reason(summary.stop_reason);
  record.set_tokens(summary.tokens);
  record.set_sampled(summary.sampled);
  record.set_prompt(summary.prompt);
  record.set_calls(summary.calls);
  record.set_has_reward(summary.has_reward);
  record.set_reward(summary.reward);
  record.set_valid(summary.valid);
  record.set_retriable(summary.retriable);
  record.set_sealed_us(summary.sealed_us);
  record.set_group(state.start.group());
  record.set_sample(state.start.sample());
  if (state.start.has_external()) *record.mutable_external() = state.start.external();
  if (state.start.has_fork()) *record.mutable_fork() = state.start.fork();
  return record;
}

Summary FromHead(const journal::TrajectoryHead& head) {
  const journal::TrajectorySummary& record = head.summary();
  Summary summary;
  summary.task_id = record.task_id();
  summary.status = record.status();
  summary.stop_reason = record.stop_reason();
  summary.tokens = record.tokens();
  summary.sampled = record.sampled();
  summary.prompt = record.prompt();
  summary.calls = record.calls();
  summary.has_reward = record.has_reward();
  summary.reward = record.reward();
  summary.failed = !summary.has_reward;
  summary.valid = record.valid();
  summary.retriable = record.retriable();
  summary.sealed_us = record.sealed_us();
  summary.dropped = head.dropped_us() != 0;
  summary.parent_id = record.fork().parent_id();
  summary.at_step = record.fork().at_step();
  return summary;
}

std::string StateName(journal::JobState state) {
  switch (state) {
    case journal::JOB_STATE_RUNNING:
      return "running";
    case journal::JOB_STATE_PAUSED:
      return "paused";
    case journal::JOB_STATE_COMPLETED:
      return "completed";
    case journal::JOB_STATE_CANCELLED:
      return "cancelled";
    case journal::JOB_STATE_FAILED:
      return "failed";
    default:
      return "unknown";
  }
}

JobRun::JobRun(std::unique_ptr<JobSpec> spec, journal::JobRecord record)
    : spec_(std::move(spec)),
      id_(record.job_id()),
      group_size_(spec_->group_size),
      record_(std::move(record)) {
  for (size_t i = 0; i < spec_->trajectories(); ++i) {
    const Task& task = spec_->tasks[i / spec_->group_size];
    trajectory_ids_.push_back(
        TrajectoryId(id_, task.group, static_cast<uint32_t>(i % spec_->group_size)));
  }
  summaries_.resize(trajectory_ids_.size());
  attempts_.resize(trajectory_ids_.size());
}

JobRun::JobRun(journal::JobRecord record, std::vector<std::string> trajectory_ids, absl::Status why)
    : why_no_spec_(std::move(why)),
      id_(record.job_id()),
      record_(std::move(record)),
      trajectory_ids_(std::move(trajectory_ids)) {
  summaries_.resize(trajectory_ids_.size());
}

JobRun::JobRun(journal::JobRecord record)
    : id_(record.job_id()),
      external_(true),
      group_size_(record.external().group_size()),
      record_(std::move(record)) {}

absl::Status JobRun::ReadLogs(replay::TrajectoryLog* log) {
  if (external_) return ReadExternalLogs(log);
  ASSIGN_OR_RETURN(std::vector<journal::Delivery> deliveries, log->Deliveries(id_));
  for (const journal::Delivery& delivery : deliveries)
    NoteAcknowledged(delivery.acknowledged_us() != 0 ? 1 : 0);
  for (size_t i = 0; i < size();) {
    const std::string id = trajectory_id(i);
    const absl::StatusOr<journal::TrajectoryHead> head = log->Head(id);
    if (absl::IsNotFound(head.status())) {
      ++i;
      continue;
    }
    RETURN_IF_ERROR(head.status());
    ASSIGN_OR_RETURN(Logged logged, ReadLogged(log, id, *head));
    if (logged.unfinished.has_value()) {
      Update(i, std::move(logged.summary));
      unfinished_.emplace(i, *std::move(logged.unfinished));
    } else if (Seal(i, std::move(logged.summary)) == After::kReplaced) {
      continue;  // the next attempt at the same sample
    }
    ++i;
  }
  return spec_ == nullptr ? absl::OkStatus() : ReadForkLogs(log);
}

absl::StatusOr<JobRun::Logged> JobRun::ReadLogged(replay::TrajectoryLog* log, const std::string& id,
                                                  const journal::TrajectoryHead& head) {
  Logged logged;
  if (head.has_summary()) {
    logged.summary = FromHead(head);
    logged.start.set_trajectory_id(id);
    logged.start.set_group(head.summary().group());
    logged.start.set_sample(head.summary().sample());
    if (head.summary().has_external()) *logged.start.mutable_external() = head.summary().external();
    if (head.summary().has_fork()) *logged.start.mutable_fork() = head.summary().fork();
    return logged;
  }
  ASSIGN_OR_RETURN(const std::vector<journal::TrajectoryEntry> entries, log->Read(id));
  auto state = replay::Fold(entries);
  if (!state.ok()) {
    return absl::Status(state.status().code(),
                        fmt::format("trajectory {}: {}", id, Message(state.status())));
  }
  logged.summary = Summarize(*state);
  logged.start = state->start;
  if (!state->sealed) logged.unfinished = *std::move(state);
  return logged;
}

size_t JobRun::PlaceOf(const journal::TrajectoryStart& start) const {
  return (start.group() - spec_->tasks[0].group) * size_t{group_size_} + start.sample();
}

absl::Status JobRun::ReadForkLogs(replay::TrajectoryLog* log) {
  ASSIGN_OR_RETURN(const std::vector<std::string> ids, log->List(id_));
  for (const std::string& id : ids) {
    if (ForkNumberOf(id) == 0) continue;
    ASSIGN_OR_RETURN(const journal::TrajectoryHead head, log->Head(id));
    ASSIGN_OR_RETURN(Logged logged, ReadLogged(log, id, head));
    const journal::TrajectoryStart& start = logged.start;
    const uint32_t first = spec_->tasks.empty() ? 0 : spec_->tasks[0].group;
    if (start.group() < first || start.group() - first >= groups() ||
        start.sample() >= group_size_) {
      return absl::DataLossError(fmt::format("trajectory {} has no place in job {}", id, id_));
    }
    const size_t index = AddFork(start);
    if (logged.unfinished.has_value()) {
      Update(index, std::move(logged.summary));
      unfinished_.emplace(index, *std::move(logged.unfinished));
    } else {
      Seal(index, std::move(logged.summary));
    }
  }
  return absl::OkStatus();
}

size_t JobRun::AddFork(const journal::TrajectoryStart& start) {
  absl::MutexLock lock(&mutex_);
  fork_places_.push_back(PlaceOf(start));
  trajectory_ids_.push_back(start.trajectory_id());
  attempts_.push_back(0);
  summaries_.emplace_back();
  ++version_;
  return trajectory_ids_.size() - 1;
}

uint32_t JobRun::NextForkNumber(size_t place) const {
  absl::MutexLock lock(&mutex_);
  uint32_t next = 1;
  const size_t places = PlacesLocked();
  for (size_t i = 0; i < fork_places_.size(); ++i) {
    if (fork_places_[i] == place)
      next = std::max(next, ForkNumberOf(trajectory_ids_[places + i]) + 1);
  }
  return next;
}

size_t JobRun::all() const {
  absl::MutexLock lock(&mutex_);
  return trajectory_ids_.size();
}

size_t JobRun::place_of(size_t index) const {
  absl::MutexLock lock(&mutex_);
  const size_t places = PlacesLocked();
  return index < places ? index : fork_places_[index - places];
}

bool JobRun::IsWhole(size_t place) const {
  absl::MutexLock lock(&mutex_);
  if (!summaries_[place].sealed) return false;
  const size_t places = PlacesLocked();
  for (size_t i = 0; i < fork_places_.size(); ++i) {
    if (fork_places_[i] == place && !summaries_[places + i].sealed) return false;
  }
  return true;
}

absl::Status JobRun::Reopen(replay::TrajectoryLog* log) {
  absl::MutexLock transition(&transition_);
  journal::JobRecord record = this->record();
  if (record.state() != journal::JOB_STATE_COMPLETED) {
    return absl::FailedPreconditionError(
        fmt::format("job {} is {}", id_, StateName(record.state())));
  }
  record.set_state(journal::JOB_STATE_RUNNING);
  RETURN_IF_ERROR(log->PutJob(record));
  absl::MutexLock lock(&mutex_);
  record_ = std::move(record);
  ++version_;
  return absl::OkStatus();
}

absl::Status JobRun::CheckEngine(const std::string& log_engine_digest) const {
  for (const auto& [index, state] : unfinished_) {
    // Versions only grow, so version 0 made the first part of a state or none.
    if (state.kv_spans.front().version != 0) continue;
    if (state.start.engine_digest() == log_engine_digest) continue;
    return absl::FailedPreconditionError(
        fmt::format("trajectory {} was begun with another model, tokenizer or chat template than "
                    "the one that is "
                    "loaded: bring back the old model directory and resume the job, or cancel it",
                    trajectory_id(index)));
  }
  return absl::OkStatus();
}

journal::JobRecord JobRun::record() const {
  absl::MutexLock lock(&mutex_);
  return record_;
}

journal::JobState JobRun::state() const {
  absl::MutexLock lock(&mutex_);
  return record_.state();
}

absl::Status JobRun::SetState(replay::TrajectoryLog* log, journal::JobState state,
                              const std::string& message) {
  absl::MutexLock transition(&transition_);
  journal::JobRecord record = this->record();
  if (record.state() == journal::JOB_STATE_COMPLETED ||
      record.state() == journal::JOB_STATE_CANCELLED || record.state() == state) {
    return absl::FailedPreconditionError(
        fmt::format("job {} is {} already", id_, StateName(record.state())));
  }
  record.set_state(state);
  record.set_message(message);
  absl::Status written = log->PutJob(record);
  if (!written.ok() && state != journal::JOB_STATE_FAILED) return written;
  absl::MutexLock lock(&mutex_);
  record_ = std::move(record);
  ++version_;
  return written;
}

void JobRun::CountLocked(const Summary& summary, int sign) {
  uint64_t one = static_cast<uint64_t>(static_cast<int64_t>(sign));
  sealed_ += one * (summary.sealed ? 1 : 0);
  failed_ += one * (summary.sealed && summary.failed ? 1 : 0);
  sampled_ += one * summary.sampled;
  fed_ += one * (summary.tokens - summary.prompt - summary.sampled);
  calls_ += one * summary.calls;
}

void JobRun::Update(size_t index, Summary summary) {
  absl::MutexLock lock(&mutex_);
  CountLocked(summaries_[index], -1);
  summaries_[index] = std::move(summary);
  CountLocked(summaries_[index], 1);
  ++version_;
}

Summary JobRun::summary(size_t index) const {
  absl::MutexLock lock(&mutex_);
  return summaries_[index];
}

bool JobRun::IsSealed(size_t index) const {
  absl::MutexLock lock(&mutex_);
  return summaries_[index].sealed;
}

void JobRun::Dropped(size_t index) {
  absl::MutexLock lock(&mutex_);
  summaries_[index].dropped = true;
  ++version_;
}

JobRun::After JobRun::Seal(size_t index, Summary summary) {
  absl::MutexLock lock(&mutex_);
  // A fork stands, whatever became of it.
  const bool fork = index >= PlacesLocked();
  const OnInvalid policy = spec_ == nullptr || fork ? OnInvalid::kMask : spec_->on_invalid;
  const size_t group = index / group_size_;
  After after = After::kStands;
  if (policy != OnInvalid::kMask && !summary.valid) {
    const bool again = summary.retriable && !dropped_.contains(group) &&
                       attempts_[index] < static_cast<uint32_t>(spec_->replacements);
    after = again ? After::kReplaced : After::kDropsItsGroup;
  }
  CountLocked(summaries_[index], -1);
  if (after == After::kReplaced) {
    summaries_[index] = Summary();
    ++replaced_;
    trajectory_ids_[index] =
        AttemptId(TrajectoryId(id_, group_at(group), static_cast<uint32_t>(index % group_size_)),
                  ++attempts_[index]);
  } else {
    if (after == After::kDropsItsGroup) dropped_.insert(group);
    summary.sealed = true;
    summaries_[index] = std::move(summary);
  }
  CountLocked(summaries_[index], 1);
  ++version_;
  return after;
}

size_t JobRun::settled_groups() const {
  absl::MutexLock lock(&mutex_);
  return acknowledged_ + dropped_.size();
}

uint32_t JobRun::attempt(size_t index) const {
  absl::MutexLock lock(&mutex_);
  return attempts_.empty() ? 0 : attempts_[index];
}

bool JobRun::IsDropped(size_t position) const {
  absl::MutexLock lock(&mutex_);
  return dropped_.contains(position);
}

std::vector<std::optional<float>> JobRun::GroupRewards(size_t position) const {
  absl::MutexLock lock(&mutex_);
  std::vector<std::optional<float>> rewards;
  if (dropped_.contains(position)) return rewards;
  for (size_t i = 0; i < group_size_; ++i) {
    const Summary& summary = summaries_[position * group_size_ + i];
    if (!summary.sealed) return {};
    rewards.push_back(summary.valid && summary.has_reward ? std::optional(summary.reward)
                                                          : std::nullopt);
  }
  return rewards;
}

std::vector<std::string> JobRun::replaced_ids(size_t index) const {
  const uint32_t attempts = attempt(index);
  if (attempts == 0) return {};
  const std::string first =
      TrajectoryId(id_, group_at(index / group_size_), static_cast<uint32_t>(index % group_size_));
  std::vector<std::string> ids;
  for (uint32_t i = 0; i < attempts; ++i) ids.push_back(AttemptId(first, i));
  return ids;
}

bool JobRun::AllSealed() const {
  absl::MutexLock lock(&mutex_);
  return sealed_ == summaries_.size();
}

wire::Job JobRun::ToProto() const {
  wire::Job job;
  absl::MutexLock lock(&mutex_);
  job.set_job_id(id_);
  job.set_state(StateName(record_.state()));
  job.set_message(record_.message());
  if (waits_for_trainer && record_.state() == journal::JOB_STATE_RUNNING) {
    job.set_message(
        fmt::format("no further group is begun: {} wait to be acknowledged, and "
                    "limits.max_unacknowledged is as many",
                    spec_->max_unacknowledged));
  }
  job.set_trajectories(static_cast<uint32_t>(summaries_.size()));
  job.set_sealed(static_cast<uint32_t>(sealed_));
  job.set_failed(static_cast<uint32_t>(failed_));
  job.set_sampled_tokens(sampled_);
  job.set_fed_tokens(fed_);
  job.set_tool_calls(calls_);
  job.set_submitted_us(record_.submitted_us());
  job.set_replaced(replaced_);
  job.set_dropped_groups(static_cast<uint32_t>(dropped_.size()));
  double sum = 0;
  uint32_t rewarded = 0;
  int64_t last_us = 0;
  for (const Summary& summary : summaries_) {
    if (!summary.sealed) continue;
    last_us = std::max(last_us, summary.sealed_us);
    if (!summary.has_reward) continue;
    sum += summary.reward;
    ++rewarded;
  }
  job.set_rewarded(rewarded);
  if (rewarded > 0) job.set_mean_reward(sum / rewarded);
  if (sealed_ == summaries_.size()) job.set_completed_us(last_us);
  job.set_decoded_this_run(decoded);
  job.set_decoded_again(decoded_again);
  job.set_prefilled_again(prefilled_again);
  job.set_resumed_trajectories(resumed);
  job.set_decode_seconds(static_cast<double>(decode_us) / 1e6);
  return job;
}

uint64_t JobRun::version() const {
  absl::MutexLock lock(&mutex_);
  return version_;
}

bool JobRun::WaitChange(uint64_t seen, absl::Duration timeout) const {
  absl::MutexLock lock(&mutex_);
  auto changed = [this, seen] {
    mutex_.AssertReaderHeld();
    return version_ > seen;
  };
  return mutex_.AwaitWithTimeout(absl::Condition(&changed), timeout);
}

}  // namespace reprise::rollout
