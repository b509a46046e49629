#include "rollout/delivery.h"

#include <fmt/format.h>

#include "base/status_macros.h"
#include "rollout/text.h"

namespace reprise::rollout {

Delivery::Job* Delivery::JobOf(const JobRun& run) {
  absl::MutexLock lock(&mutex_);
  // A job that was forgotten leaves its id to another.
  std::unique_ptr<Job>& job = jobs_[{run.id(), run.record().submitted_us()}];
  if (job == nullptr) job = std::make_unique<Job>();
  return job.get();
}

absl::Status Delivery::ReadLocked(const JobRun& run, Job* job) {
  if (run.spec() == nullptr && !run.external()) {
    return absl::FailedPreconditionError(fmt::format("groups of job {} cannot be delivered: {}",
                                                     run.id(), Message(run.why_no_spec())));
  }
  if (job->read) return absl::OkStatus();
  ASSIGN_OR_RETURN(std::vector<journal::Delivery> deliveries, log_->Deliveries(run.id()));
  for (journal::Delivery& delivery : deliveries) job->groups[delivery.group()] = delivery;
  job->read = true;
  return absl::OkStatus();
}

Delivery::Place Delivery::PlaceLocked(const JobRun& run, size_t position, const Job& job) const {
  if (run.IsDropped(position)) return Place::kDropped;
  auto known = job.groups.find(run.group_at(position));
  if (known == job.groups.end()) {
    bool gone = false;
    for (size_t sample = 0; sample < run.group_size(); ++sample) {
      const size_t place = position * run.group_size() + sample;
      if (!run.IsWhole(place)) return Place::kPending;
      gone = gone || run.summary(place).dropped;
    }
    return gone ? Place::kDropped : Place::kReady;
  }
  if (known->second.acknowledged_us() != 0) return Place::kAcknowledged;
  // A clock that was set back makes no lease longer than the longest.
  int64_t left_us = known->second.lease_until_us() - now_us_();
  if (left_us > 0 && left_us <= kMaxLeaseMs * 1000) return Place::kLeased;
  // It came back, and may have got a fork since then.
  for (size_t sample = 0; sample < run.group_size(); ++sample) {
    if (!run.IsWhole(position * run.group_size() + sample)) return Place::kPending;
  }
  return Place::kReady;
}

absl::StatusOr<std::vector<Delivery::Lease>> Delivery::Take(const JobRun& run, uint32_t max_groups,
                                                            int64_t lease_ms, bool in_order) {
  Job* job = JobOf(run);
  absl::MutexLock lock(&job->mutex);
  RETURN_IF_ERROR(ReadLocked(run, job));
  std::vector<Lease> leases;
  std::vector<journal::Delivery> written;
  const int64_t until_us = now_us_() + lease_ms * 1000;
  const size_t groups = run.groups();
  for (size_t i = 0; i < groups && leases.size() < max_groups; ++i) {
    Place place = PlaceLocked(run, i, *job);
    if (place == Place::kPending && in_order) break;
    if (place != Place::kReady) continue;
    const uint32_t group = run.group_at(i);
    auto known = job->groups.find(group);
    journal::Delivery delivery;
    delivery.set_group(group);
    delivery.set_attempt(known == job->groups.end() ? 1 : known->second.attempt() + 1);
    delivery.set_lease_until_us(until_us);
    leases.push_back({i * run.group_size(), group, delivery.attempt(), until_us});
    written.push_back(std::move(delivery));
  }
  if (written.empty()) return leases;
  RETURN_IF_ERROR(log_->PutDeliveries(run.id(), written));
  for (journal::Delivery& delivery : written) job->groups[delivery.group()] = delivery;
  return leases;
}

absl::Status Delivery::Ack(const JobRun& run, const std::vector<Fence>& fences) {
  return Settle(run, fences, true);
}

absl::Status Delivery::Release(const JobRun& run, const std::vector<Fence>& fences) {
  return Settle(run, fences, false);
}

absl::Status Delivery::Settle(const JobRun& run, const std::vector<Fence>& fences,
                              bool acknowledge) {
  Job* job = JobOf(run);
  absl::MutexLock lock(&job->mutex);
  RETURN_IF_ERROR(ReadLocked(run, job));
  std::vector<journal::Delivery> written;
  for (const Fence& fence : fences) {
    auto known = job->groups.find(fence.group);
    if (known == job->groups.end()) {
      return absl::NotFoundError(
          fmt::format("group {} of job {} was never leased", fence.group, run.id()));
    }
    if (known->second.attempt() != fence.attempt) {
      return absl::FailedPreconditionError(fmt::format(
          "lease {} of group {} of job {} is not its last, which is {}: the group came back and is "
          "another's, drop what was made of it",
          fence.attempt, fence.group, run.id(), known->second.attempt()));
    }
    if (known->second.acknowledged_us() != 0) {
      if (acknowledge) continue;
      return absl::FailedPreconditionError(fmt::format(
          "group {} of job {} is acknowledged, it cannot be given back", fence.group, run.id()));
    }
    journal::Delivery delivery = known->second;
    if (acknowledge) {
      delivery.set_acknowledged_us(now_us_());
    } else {
      delivery.set_attempt(delivery.attempt() + 1);
      delivery.set_lease_until_us(0);
    }
    written.push_back(std::move(delivery));
  }
  if (written.empty()) return absl::OkStatus();
  RETURN_IF_ERROR(log_->PutDeliveries(run.id(), written));
  for (journal::Delivery& delivery : written) job->groups[delivery.group()] = delivery;
  if (acknowledge) run.NoteAcknowledged(written.size());
  return absl::OkStatus();
}

absl::StatusOr<bool> Delivery::IsLeased(const JobRun& run, size_t position) {
  Job* job = JobOf(run);
  absl::MutexLock lock(&job->mutex);
  RETURN_IF_ERROR(ReadLocked(run, job));
  return PlaceLocked(run, position, *job) == Place::kLeased;
}

absl::StatusOr<Delivery::Counts> Delivery::Count(const JobRun& run) {
  Job* job = JobOf(run);
  absl::MutexLock lock(&job->mutex);
  RETURN_IF_ERROR(ReadLocked(run, job));
  Counts counts;
  const size_t groups = run.groups();
  for (size_t i = 0; i < groups; ++i) {
    switch (PlaceLocked(run, i, *job)) {
      case Place::kPending:
        ++counts.pending;
        break;
      case Place::kReady:
        ++counts.ready;
        break;
      case Place::kLeased:
        ++counts.leased;
        break;
      case Place::kAcknowledged:
        ++counts.acknowledged;
        break;
      case Place::kDropped:
        ++counts.dropped;
        break;
    }
  }
  return counts;
}

}  // namespace reprise::rollout
