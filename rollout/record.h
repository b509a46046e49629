// The rollout.v1 record of one sealed trajectory: what the log holds, beside what only its job
// knows.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "replay/trajectory_state.h"
#include "rollout/job_run.h"

namespace reprise::rollout {

// The task that a trajectory was begun for. DATA_LOSS when the task set has it no more.
absl::StatusOr<const Task*> TaskOf(const replay::TrajectoryState& state, const JobSpec& spec);

// One line of JSON. REQUIRES: state.sealed. FAILED_PRECONDITION when the files of the job are not
// what they were.
absl::StatusOr<std::string> ExportRecord(const replay::TrajectoryState& state, const JobRun& run,
                                         bool without_timing);

}  // namespace reprise::rollout
