// Trajectories that an agent outside drives, request by request: which log a request continues,
// what of it is recorded already, and how a trajectory ends.
//
// A request whose prompt goes on where a branch of its trajectory ended continues that branch: the
// recorded tokens stay as they are, whatever the text of the prompt would be tokenised to, and what
// is new is fed with mask 0. Any other prompt begins a branch, which becomes a record of its own:
// no token is ever in a record after others than those that the model saw before it.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "replay/trajectory_log.h"
#include "rollout/http/names.h"
#include "rollout/http/openai_request.h"
#include "rollout/http/recording.h"
#include "rollout/http/served_model.h"
#include "rollout/job_table.h"

namespace reprise::rollout::http {

inline constexpr char kDefaultJob[] = "external";
inline constexpr uint32_t kBranchesMax = 1024;     // of one trajectory
inline constexpr size_t kTrajectoriesKept = 4096;  // in memory; idle ones above it are read again

// What the headers of a request say.
struct HarnessCall {
  std::string job = kDefaultJob;  // X-Reprise-Job
  std::string name;               // X-Reprise-Trajectory
  std::string group;              // X-Reprise-Group; the trajectory's name when there is none
  uint32_t group_size = 0;        // X-Reprise-Group-Size; 0 when there is none
  std::string request_id;         // X-Request-ID
  std::string digest;             // SHA-256 (raw) over path and body
};
// nullopt for a request without X-Reprise-Trajectory. INVALID_ARGUMENT for a malformed header.
absl::StatusOr<std::optional<HarnessCall>> ReadHarnessCall(const web::Request& request);

// One request in its trajectory.
struct HarnessTurn {
  std::string trajectory_id;  // of its log
  std::vector<int32_t> prompt;
  uint64_t seed = 0;
  std::string answer_id;
  int64_t created_us = 0;
  std::vector<RecordedToken> recorded;   // of the answer, so far
  bool done = false;                     // they are all of it
  std::optional<int64_t> cached_tokens;  // of its prompt, when done
  bool replayed = false;                 // the request was here before
  std::shared_ptr<Recording> recording;  // of what follows; nullptr when done
};

// Thread-safe. Calls block: they read and write the log.
class Harness {
 public:
  // Both outlive it.
  Harness(JobTable* jobs, replay::TrajectoryLog* log) : jobs_(jobs), log_(log) {}

  // `answer_id`: of a new answer. Durable when it returns. FAILED_PRECONDITION: another request
  // under the same id, a sealed trajectory, a job that is not running; ABORTED: the same request is
  // being answered; RESOURCE_EXHAUSTED: kBranchesMax.
  absl::StatusOr<HarnessTurn> Begin(const HarnessCall& call, const ServedModel& model,
                                    const OpenAiRequest& request, const std::string& answer_id);

  struct Ending {
    std::optional<float> reward;
    std::map<std::string, float> components;
    std::string status = "completed";  // completed, truncated, aborted, failed
    std::string failure_kind, failure;
  };
  // Seals all branches. Again with the same reward and status: no error. NOT_FOUND; ABORTED while a
  // request of it is answered; FAILED_PRECONDITION when it was sealed with another ending.
  // The ids of its records.
  absl::StatusOr<std::vector<std::string>> Finish(const std::string& job, const std::string& name,
                                                  const Ending& ending);

 private:
  struct Branch;
  struct Trajectory;
  class TurnRecording;

  absl::StatusOr<std::shared_ptr<Trajectory>> Load(const std::shared_ptr<JobRun>& run,
                                                   size_t index);
  absl::StatusOr<HarnessTurn> Again(const std::shared_ptr<Trajectory>& trajectory,
                                    const HarnessCall& call, const OpenAiRequest& request,
                                    size_t branch);
  absl::StatusOr<HarnessTurn> New(const std::shared_ptr<Trajectory>& trajectory,
                                  const HarnessCall& call, const ServedModel& model,
                                  const OpenAiRequest& request, const std::string& answer_id);

  JobTable* const jobs_;
  replay::TrajectoryLog* const log_;
  absl::Mutex mutex_;
  std::map<std::pair<std::string, size_t>, std::shared_ptr<Trajectory>> known_
      ABSL_GUARDED_BY(mutex_);  // by job and index
};

}  // namespace reprise::rollout::http
