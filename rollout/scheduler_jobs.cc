// The scheduler's part that ends jobs: completed, cancelled, failed.
#include <fmt/format.h>

#include <algorithm>

#include "base/log.h"
#include "rollout/identity.h"
#include "rollout/scheduler_parts.h"
#include "rollout/text.h"

namespace reprise::rollout {

void Scheduler::CheckJobs() {
  for (size_t i = 0; i < jobs_.size();) {
    JobRun* job = jobs_[i]->job.get();
    journal::JobState state = job->state();
    bool ended = state == journal::JOB_STATE_FAILED;
    if (!ended && jobs_[i]->in_flight == 0 && job->AllSealed()) {
      ended = true;
      if (state != journal::JOB_STATE_CANCELLED) {
        absl::Status status = job->SetState(log_, journal::JOB_STATE_COMPLETED, "");
        if (!status.ok()) return FailAll(status);
      }
    }
    if (ended) {
      jobs_.erase(jobs_.begin() + static_cast<ptrdiff_t>(i));
    } else {
      ++i;
    }
  }
}

void Scheduler::CancelJob(ActiveJob* active) {
  if (active->cancel_seen) return;
  active->cancel_seen = true;
  std::vector<LivePtr> lives = lives_;
  for (const LivePtr& live : lives) {
    if (live->job != active->job || live->state.sealed) continue;
    SealNow(live, SealEntry("aborted", "", "", "cancelled by request"));
    Advance(live);
  }
}

void Scheduler::DropGroup(const std::shared_ptr<JobRun>& job, size_t group) {
  std::vector<LivePtr> lives = lives_;
  for (const LivePtr& live : lives) {
    if (live->job != job || job->position_of(live->index) != group) continue;
    if (live->dead || live->state.sealed) continue;
    SealNow(live, DroppedEntry());
    Advance(live);
  }
}

void Scheduler::SealNow(const LivePtr& live, journal::TrajectoryEntry seal) {
  Write(live, std::move(seal));
  judge_->Drop(RewardCallId(live->plan.id));
  if (!live->may_have_sandbox || live->sandbox_stopped) return;
  // Its calls end with it; nobody waits for the answer.
  live->sandbox_stopped = true;
  pool_->Run([this, live] { (void)StopBoxes(live->plan); });
}

void Scheduler::FailJob(const std::shared_ptr<JobRun>& job, const absl::Status& why) {
  base::LogError(fmt::format("job {} failed: {}", job->id(), Message(why)));
  absl::Status status = job->SetState(log_, journal::JOB_STATE_FAILED, Message(why));
  if (!status.ok()) base::LogError(fmt::format("job {}: {}", job->id(), Message(status)));
  std::erase_if(lives_, [&](const LivePtr& live) {
    if (live->job != job) return false;
    live->dead = true;
    live->runnable = false;
    live->sequence.reset();
    return true;
  });
}

void Scheduler::FailAll(const absl::Status& why) {
  if (broken_) return;
  broken_ = true;
  absl::Status message = absl::Status(
      why.code(),
      fmt::format("the journal refused a write, what it acknowledged stays readable: {}",
                  Message(why)));
  for (auto& active : jobs_) FailJob(active->job, message);
  FailGuests(message);
  jobs_.clear();
  batch_.clear();
  touched_.clear();
}

}  // namespace reprise::rollout
