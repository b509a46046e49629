// RolloutService over a job table. Streams poll for the end of their call at least every
// kStreamPoll.
#pragma once

#include <memory>

#include "absl/time/time.h"
#include "replay/trajectory_log.h"
#include "reprise/rollout/v1/rollout.grpc.pb.h"
#include "rollout/job_table.h"

namespace reprise::rollout {

inline constexpr absl::Duration kStreamPoll =
    absl::Milliseconds(250);  // and most often a Watch answers
inline constexpr size_t kMaxSpecBytes = 1 << 20;
inline constexpr int kMaxLeaseStreams = 64;  // Lease calls under way at one time
inline constexpr int64_t kMaxLeaseWaitMs = 60 * 1000;

// All outlive the service.
std::unique_ptr<wire::RolloutService::Service> MakeRolloutService(JobTable* jobs,
                                                                  replay::TrajectoryLog* log,
                                                                  Sandboxes* sandboxes);

}  // namespace reprise::rollout
