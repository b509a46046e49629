// A blocking client of rolloutd for C++ programs: one method a verb, errors as the daemon words
// them. Nothing is tried again: a command says what happened, and the same command goes on.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "reprise/rollout/v1/rollout.pb.h"

namespace reprise::rollout {

namespace wire = ::reprise::rollout::v1;

class RolloutClient {
 public:
  // `address` as rolloutd's --listen, e.g. "unix:/state/rolloutd.sock". Connects when the first
  // request needs it; UNAVAILABLE of a request names the address.
  static std::unique_ptr<RolloutClient> Connect(const std::string& address);
  virtual ~RolloutClient() = default;

  virtual absl::StatusOr<wire::Job> Submit(const wire::SubmitRequest& request) = 0;
  virtual absl::StatusOr<wire::Job> Get(const std::string& job_id) = 0;
  virtual absl::StatusOr<wire::ListJobsResponse> List() = 0;
  virtual absl::StatusOr<wire::Job> Pause(const std::string& job_id) = 0;
  virtual absl::StatusOr<wire::Job> Resume(const std::string& job_id) = 0;
  virtual absl::StatusOr<wire::Job> Cancel(const std::string& job_id) = 0;

  // Returns when the weights are in force.
  virtual absl::StatusOr<wire::LoadWeightsAnswer> LoadWeights(
      const wire::LoadWeightsRequest& request) = 0;
  virtual absl::StatusOr<wire::ShowWeightsResponse> ShowWeights(const std::string& model) = 0;

  // Calls `on_job` on this thread whenever the job changed, and returns it as it ended.
  virtual absl::StatusOr<wire::Job> Watch(const std::string& job_id,
                                          const std::function<void(const wire::Job&)>& on_job) = 0;
  // Passes every record on, in the order of group and sample; an error of `on_record` ends it.
  virtual absl::Status Export(
      const wire::ExportRequest& request,
      const std::function<absl::Status(const wire::ExportedTrajectory&)>& on_record) = 0;
  // Of one job, or of all when `job_id` is empty.
  virtual absl::StatusOr<wire::ListTrajectoriesResponse> ListTrajectories(
      const std::string& job_id) = 0;
  virtual absl::StatusOr<wire::Trajectory> GetTrajectory(const std::string& trajectory_id) = 0;
  // Waits until the stored calls have run again.
  virtual absl::StatusOr<wire::Verification> VerifyTrajectory(const std::string& trajectory_id) = 0;

  // Returns when the new trajectory is in the journal, and its sandbox is as the other's was.
  virtual absl::StatusOr<wire::ForkedTrajectory> ForkTrajectory(
      const wire::ForkTrajectoryRequest& request) = 0;

  // Ends every request that waits, with CANCELLED, from any thread; the client is of no use
  // afterwards.
  virtual void Shutdown() = 0;
};

}  // namespace reprise::rollout
