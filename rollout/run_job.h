// A job from submission to its export, over the service of a daemon (one of its own or an Embedded
// one): what `rolloutd --job` and `reprise rollout run` do.
#pragma once

#include <functional>
#include <string>

#include "absl/status/statusor.h"
#include "reprise/rollout/v1/rollout.pb.h"
#include "rollout/client.h"

namespace reprise::rollout {

struct RunJobOptions {
  std::string job_file;  // TOML; RunJob only
  std::string job_id;   // RunJob: overrides the id in the file when not empty; FinishJob: which job
  std::string out_dir;  // receives trajectories.jsonl, made when missing
  bool without_timing = false;
  // Called whenever the job changed, at most four times a second, on the caller's thread.
  std::function<void(const ::reprise::rollout::v1::Job&)> on_progress;
};

struct RunJobSummary {
  ::reprise::rollout::v1::Job job;  // as it ended: trajectories, tool calls, mean reward, ...
  std::string output_path;          // OUT/trajectories.jsonl
  double tokens_per_second = 0;     // sampled by this run, over the time it spent decoding
};

// Submits (again: the same content is the same job; one that was paused or failed is taken up),
// waits until it ends, and replaces OUT/trajectories.jsonl in one step by its sealed trajectories,
// ordered by group and sample. OUT/dropped.jsonl receives what is delivered to nobody, if anything
// is. ABORTED with the job's own message when it failed.
absl::StatusOr<RunJobSummary> RunJob(RolloutClient* client, const RunJobOptions& options);
// The same for a job that the daemon has.
absl::StatusOr<RunJobSummary> FinishJob(RolloutClient* client, const RunJobOptions& options);
// Replaces `path` in one step by the sealed trajectories of a job.
absl::Status ExportJob(RolloutClient* client, const ::reprise::rollout::v1::ExportRequest& request,
                       const std::string& path);
// Tokens a second that the daemon sampled for this job; 0 when it sampled none.
double TokensPerSecond(const ::reprise::rollout::v1::Job& job);

}  // namespace reprise::rollout
