#include "rollout/run_job.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <filesystem>
#include <utility>

#include "base/fd.h"
#include "base/status_macros.h"
#include "rollout/job.h"

namespace reprise::rollout {
namespace {

absl::StatusOr<RunJobSummary> Finish(RolloutClient* client, const RunJobOptions& options,
                                     wire::Job job) {
  if (job.state() == "paused" || job.state() == "failed") {
    RETURN_IF_ERROR(client->Resume(options.job_id).status());
  }
  RunJobSummary summary;
  ASSIGN_OR_RETURN(summary.job, client->Watch(options.job_id, options.on_progress));
  if (summary.job.state() == "failed") {
    return absl::AbortedError(
        fmt::format("job {} failed: {}", options.job_id, summary.job.message()));
  }
  summary.tokens_per_second = TokensPerSecond(summary.job);
  RETURN_IF_ERROR(base::MakeDirs(options.out_dir));
  summary.output_path = options.out_dir + "/trajectories.jsonl";
  wire::ExportRequest request;
  request.set_job_id(options.job_id);
  request.set_without_timing(options.without_timing);
  RETURN_IF_ERROR(ExportJob(client, request, summary.output_path));
  const std::string dropped = options.out_dir + "/dropped.jsonl";
  if (summary.job.replaced() + summary.job.dropped_groups() > 0) {
    request.set_dropped(true);
    RETURN_IF_ERROR(ExportJob(client, request, dropped));
  } else if (std::error_code error; !std::filesystem::remove(dropped, error) && error) {
    return absl::UnavailableError(fmt::format("cannot remove {}: {}", dropped, error.message()));
  }
  return summary;
}

}  // namespace

double TokensPerSecond(const wire::Job& job) {
  if (job.decode_seconds() <= 0) return 0;
  return static_cast<double>(job.decoded_this_run()) / job.decode_seconds();
}

// Beside `path` first, then into its place: nobody sees half a file.
absl::Status ExportJob(RolloutClient* client, const wire::ExportRequest& request,
                       const std::string& path) {
  std::string partial = path + ".partial";
  base::UniqueFd file(::open(partial.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644));
  if (!file.valid()) return base::ErrnoStatus(errno, fmt::format("cannot write {}", partial));
  RETURN_IF_ERROR(client->Export(request, [&](const wire::ExportedTrajectory& record) {
    return base::WriteAll(file.get(), record.json() + "\n", partial);
  }));
  if (::fsync(file.get()) != 0)
    return base::ErrnoStatus(errno, fmt::format("cannot sync {}", partial));
  if (::rename(partial.c_str(), path.c_str()) != 0) {
    return base::ErrnoStatus(errno, fmt::format("cannot move {} to {}", partial, path));
  }
  return absl::OkStatus();
}

absl::StatusOr<RunJobSummary> RunJob(RolloutClient* client, const RunJobOptions& options) {
  wire::SubmitRequest submit;
  ASSIGN_OR_RETURN(*submit.mutable_spec_toml(), base::ReadFile(options.job_file, kMaxJobFileBytes));
  submit.set_spec_dir(std::filesystem::absolute(options.job_file).parent_path().string());
  submit.set_job_id(options.job_id);
  submit.set_spec_name(options.job_file);
  ASSIGN_OR_RETURN(wire::Job job, client->Submit(submit));
  RunJobOptions rest = options;
  rest.job_id = job.job_id();
  return Finish(client, rest, std::move(job));
}

absl::StatusOr<RunJobSummary> FinishJob(RolloutClient* client, const RunJobOptions& options) {
  ASSIGN_OR_RETURN(wire::Job job, client->Get(options.job_id));
  return Finish(client, options, std::move(job));
}

}  // namespace reprise::rollout
