// The part of a job that grows: places for the trajectories that agents outside begin, groups and
// samples in the order of their first request. A place is in the first entry of its logs; one that
// was given but never written is free again after a restart.
#include <fmt/format.h>

#include <algorithm>

#include "base/status_macros.h"
#include "rollout/identity.h"
#include "rollout/job_run.h"
#include "rollout/text.h"

namespace reprise::rollout {

size_t JobRun::size() const {
  absl::MutexLock lock(&mutex_);
  return PlacesLocked();
}

std::string JobRun::trajectory_id(size_t index) const {
  absl::MutexLock lock(&mutex_);
  return trajectory_ids_[index];
}

std::vector<std::string> JobRun::record_ids(size_t index) const {
  absl::MutexLock lock(&mutex_);
  std::vector<std::string> ids = {trajectory_ids_[index]};
  const uint32_t branches = external_ ? branches_[index] : 1;
  for (uint32_t branch = 1; branch < branches; ++branch)
    ids.push_back(BranchId(trajectory_ids_[index], branch));
  const size_t places = PlacesLocked();
  for (size_t i = 0; i < fork_places_.size(); ++i) {
    if (fork_places_[i] == index) ids.push_back(trajectory_ids_[places + i]);
  }
  return ids;
}

size_t JobRun::groups() const {
  absl::MutexLock lock(&mutex_);
  return PlacesLocked() / group_size_;
}

uint32_t JobRun::group_at(size_t position) const {
  return external_ ? static_cast<uint32_t>(position) : spec_->tasks[position].group;
}

absl::StatusOr<size_t> JobRun::Place(const std::string& group, const std::string& name) {
  absl::MutexLock lock(&mutex_);
  if (auto known = names_.find(name); known != names_.end()) {
    if (known->second.second == group) return known->second.first;
    return absl::FailedPreconditionError(fmt::format(
        "trajectory \"{}\" is of group \"{}\", not of \"{}\"", name, known->second.second, group));
  }
  auto ordinal = group_ordinals_.find(group);
  if (ordinal == group_ordinals_.end()) {
    uint32_t free = static_cast<uint32_t>(trajectory_ids_.size() / group_size_);
    if (!free_ordinals_.empty()) free = *free_ordinals_.begin();
    if (free >= kMaxGroups) {
      return absl::FailedPreconditionError(
          fmt::format("job {} has {} groups, the most there can be: name another job", id_, free));
    }
    NameGroupLocked(free, group);
    ordinal = group_ordinals_.find(group);
  }
  for (uint32_t sample = 0; sample < group_size_; ++sample) {
    const size_t index = static_cast<size_t>(ordinal->second) * group_size_ + sample;
    if (branches_[index] > 0) continue;
    branches_[index] = 1;
    names_[name] = {index, group};
    ++version_;
    return index;
  }
  return absl::FailedPreconditionError(fmt::format(
      "group \"{}\" has its {} trajectories, \"{}\" would be one more", group, group_size_, name));
}

void JobRun::NameGroupLocked(uint32_t ordinal, const std::string& name) {
  while (trajectory_ids_.size() / group_size_ <= ordinal) {
    const auto next = static_cast<uint32_t>(trajectory_ids_.size() / group_size_);
    for (uint32_t sample = 0; sample < group_size_; ++sample)
      trajectory_ids_.push_back(TrajectoryId(id_, next, sample));
    free_ordinals_.insert(next);
  }
  free_ordinals_.erase(ordinal);
  group_ordinals_[name] = ordinal;
  summaries_.resize(trajectory_ids_.size());
  branches_.resize(trajectory_ids_.size(), 0);
}

std::optional<size_t> JobRun::Find(const std::string& name) const {
  absl::MutexLock lock(&mutex_);
  auto known = names_.find(name);
  if (known == names_.end()) return std::nullopt;
  return known->second.first;
}

std::pair<std::string, uint32_t> JobRun::AddBranch(size_t index) {
  absl::MutexLock lock(&mutex_);
  const uint32_t branch = branches_[index]++;
  return {BranchId(trajectory_ids_[index], branch), branch};
}

absl::Status JobRun::ReadExternalLogs(replay::TrajectoryLog* log) {
  ASSIGN_OR_RETURN(const std::vector<std::string> ids, log->List(id_));
  for (const std::string& id : ids) {
    ASSIGN_OR_RETURN(const journal::TrajectoryHead head, log->Head(id));
    ASSIGN_OR_RETURN(Logged logged, ReadLogged(log, id, head));
    const journal::TrajectoryStart& start = logged.start;
    const journal::ExternalStart& external = start.external();
    if (start.sample() >= group_size_ || start.group() >= kMaxGroups || external.name().empty())
      return absl::DataLossError(fmt::format("trajectory {} has no place in job {}", id, id_));
    const size_t index = static_cast<size_t>(start.group()) * group_size_ + start.sample();
    {
      absl::MutexLock lock(&mutex_);
      NameGroupLocked(start.group(), external.group());
      names_[external.name()] = {index, external.group()};
      branches_[index] = std::max(branches_[index], external.branch() + 1);
    }
    if (external.branch() != 0) continue;
    logged.summary.sealed = !logged.unfinished.has_value();
    Update(index, std::move(logged.summary));
  }
  return absl::OkStatus();
}

}  // namespace reprise::rollout
