// The scheduler's part that changes weights while trajectories run. A change happens between two
// steps, so every token has one version; what a running trajectory does about it is an entry of its
// own log, so that a restarted daemon rebuilds the KV state that this one had.
#include <fmt/format.h>

#include <algorithm>

#include "absl/synchronization/notification.h"
#include "base/failpoint.h"
#include "base/log.h"
#include "base/status_macros.h"
#include "rollout/identity.h"
#include "rollout/scheduler_parts.h"
#include "rollout/text.h"

namespace reprise::rollout {

void Scheduler::RunBetweenSteps(const std::function<void()>& event) {
  absl::Notification done;
  Post([&] {
    event();
    done.Notify();
  });
  done.WaitForNotification();
}

absl::Status Scheduler::Ready() {
  absl::MutexLock one(&updating_);
  bool ready = false;
  RunBetweenSteps([&] { ready = current_weights_ != nullptr; });
  if (ready) return absl::OkStatus();
  RETURN_IF_ERROR(weights_.Read());
  journal::WeightsRecord record = weights_.current();
  ASSIGN_OR_RETURN(WeightsPtr weights, weights_.Get(record.version()));
  RunBetweenSteps([&] {
    current_ = std::move(record);
    current_weights_ = std::move(weights);
  });
  return absl::OkStatus();
}

absl::StatusOr<Scheduler::HeldWeights> Scheduler::WeightsFor(JobRun* job) {
  HeldWeights held;
  for (const auto& [index, state] : job->unfinished()) {
    ASSIGN_OR_RETURN(HeldWeights more, WeightsOf(job->trajectory_id(index), state));
    held.merge(more);
  }
  return held;
}

absl::StatusOr<Scheduler::HeldWeights> Scheduler::WeightsOf(const std::string& id,
                                                            const replay::TrajectoryState& state) {
  HeldWeights held;
  for (const replay::KvSpan& span : state.kv_spans) {
    if (held.count(span.version) != 0) continue;
    auto weights = weights_.Get(span.version);
    if (!weights.ok()) {
      return absl::Status(weights.status().code(),
                          fmt::format("trajectory {} ran under older weights: {}, or cancel the "
                                      "job",
                                      id, Message(weights.status())));
    }
    held[span.version] = *std::move(weights);
  }
  return held;
}

absl::StatusOr<Scheduler::Update> Scheduler::LoadWeights(journal::WeightsRecord record) {
  absl::MutexLock one(&updating_);
  RETURN_IF_ERROR(weights_.Read());
  ASSIGN_OR_RETURN(WeightTable::Added added, weights_.Add(std::move(record)));
  Update update;
  update.record = added.record;
  bool broken = false;
  RunBetweenSteps([&] {
    broken = broken_;
    if (broken || current_.version() == added.record.version()) return;
    SwitchWeights(added.record, std::move(added.weights), &update);
  });
  if (broken) {
    return absl::UnavailableError("the journal takes no more writes, restart rolloutd");
  }
  return update;
}

void Scheduler::SwitchWeights(const journal::WeightsRecord& record, WeightsPtr weights,
                              Update* update) {
  current_ = record;
  current_weights_ = std::move(weights);
  // Guests go on under them, with a KV state of them alone.
  for (const VisitPtr& visit : visits_) visit->sequence.reset();
  std::vector<LivePtr> lives = lives_;
  for (const LivePtr& live : lives) {
    switch (GoOver(live)) {
      case Crossing::kNone:
        break;
      case Crossing::kSwitched:
        ++update->switched;
        break;
      case Crossing::kDraining:
        ++update->draining;
        break;
      case Crossing::kStale:
        ++update->stale;
        Advance(live);
        break;
    }
  }
  base::FailPoint("weights.switched");
  base::LogInfo(fmt::format("weight version {} of {}: {} ({} go on under it, {} drain, {} stale)",
                            record.version(), record.model(), record.directory(), update->switched,
                            update->draining, update->stale));
}

Scheduler::Crossing Scheduler::GoOver(const LivePtr& live) {
  const replay::TrajectoryState& state = live->state;
  if (live->dead || state.sealed || state.weight_version() == current_.version()) {
    return Crossing::kNone;
  }
  // One that samples no more is what it is.
  Action next = logic_.Next(live->plan, state);
  bool over = next.kind == Action::Kind::kGrade || next.kind == Action::Kind::kDone ||
              (next.kind == Action::Kind::kAppend && next.entries[0].has_sealed());
  if (over) return Crossing::kNone;
  const WeightsPolicy& policy = live->job->spec()->weights;
  if (policy.max_staleness >= 0 && !state.version_spans.empty()) {
    const uint64_t oldest = state.version_spans.front().version;
    if (current_.version() - oldest > static_cast<uint64_t>(policy.max_staleness)) {
      SealNow(live, SealEntry("aborted", "stale", "", ""));
      return Crossing::kStale;
    }
  }
  const bool drain = current_.running() == journal::RUNNING_SEQUENCES_UNSPECIFIED
                         ? policy.drain
                         : current_.running() == journal::RUNNING_SEQUENCES_DRAIN;
  if (drain) return Crossing::kDraining;
  const bool keep = current_.kv() == journal::KV_POLICY_UNSPECIFIED
                        ? policy.keep_kv
                        : current_.kv() == journal::KV_POLICY_KEEP;
  uint64_t kept = 0;
  if (keep) {
    // What is being rebuilt after a restart counts as read.
    kept = state.fed_tokens();
    if (live->sequence) kept = std::max(kept, static_cast<uint64_t>(live->sequence->length()));
  } else {
    live->sequence.reset();
    live->kv_on_disk = false;
    live->routes.clear();
  }
  journal::TrajectoryEntry entry;
  entry.mutable_switched()->set_weight_version(current_.version());
  entry.mutable_switched()->set_kept_tokens(kept);
  Write(live, std::move(entry));
  live->weights[current_.version()] = current_weights_;
  return Crossing::kSwitched;
}

absl::StatusOr<WeightsPtr> Scheduler::FeedingWeights(const LivePtr& live, size_t position,
                                                     size_t* end) {
  const std::vector<replay::KvSpan>& spans = live->state.kv_spans;
  size_t at = spans.size() - 1;
  *end = live->state.tokens.size();
  while (spans[at].begin > position) *end = spans[at--].begin;
  auto held = live->weights.find(spans[at].version);
  if (held != live->weights.end()) return held->second;
  ASSIGN_OR_RETURN(WeightsPtr weights, weights_.Get(spans[at].version));
  return live->weights[spans[at].version] = std::move(weights);
}

void Scheduler::PauseAll() {
  RunBetweenSteps([this] { paused_ = true; });
}

void Scheduler::ContinueAll() {
  RunBetweenSteps([this] { paused_ = false; });
}

}  // namespace reprise::rollout
