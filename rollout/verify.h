// Whether the stored tool calls of a trajectory still give their stored results: each is executed
// again, in order, in a fresh sandbox, and what the model was shown is compared.
#pragma once

#include "absl/status/statusor.h"
#include "replay/trajectory_state.h"
#include "reprise/rollout/v1/rollout.pb.h"
#include "rollout/job_run.h"
#include "rollout/sandboxes.h"

namespace reprise::rollout {

// Stops at the first divergence. The sandbox is removed at the end. FAILED_PRECONDITION when the
// files of the job can no longer be read, DATA_LOSS when a stored call is not one of its tools.
absl::StatusOr<::reprise::rollout::v1::Verification> Verify(const replay::TrajectoryState& state,
                                                            const JobRun& run,
                                                            Sandboxes* sandboxes);

}  // namespace reprise::rollout
