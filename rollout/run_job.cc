#include "rollout/run_job.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <grpcpp/grpcpp.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <filesystem>
#include <memory>

#include "base/fd.h"
#include "base/status_macros.h"
#include "reprise/rollout/v1/rollout.grpc.pb.h"
#include "rollout/job.h"

namespace reprise::rollout {
namespace {

namespace wire = ::reprise::rollout::v1;
using Stub = wire::RolloutService::Stub;

absl::Status FromGrpc(const grpc::Status& status) {
  if (status.ok()) return absl::OkStatus();
  return absl::Status(static_cast<absl::StatusCode>(status.error_code()), status.error_message());
}

std::unique_ptr<Stub> Connect(const std::string& address) {
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(-1);  // a record is as long as its trajectory
  arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  return wire::RolloutService::NewStub(
      grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), arguments));
}

// Waits until the job ends.
absl::StatusOr<wire::Job> Wait(Stub* stub, const RunJobOptions& options) {
  wire::GetJobRequest request;
  request.set_job_id(options.job_id);
  grpc::ClientContext context;
  auto reader = stub->Watch(&context, request);
  wire::Job job;
  while (reader->Read(&job)) {
    if (options.on_progress) options.on_progress(job);
  }
  RETURN_IF_ERROR(FromGrpc(reader->Finish()));
  return job;
}

// Beside `path` first, then into its place: nobody sees half a file.
absl::Status Export(Stub* stub, const RunJobOptions& options, const std::string& path) {
  std::string partial = path + ".partial";
  base::UniqueFd file(::open(partial.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644));
  if (!file.valid()) return base::ErrnoStatus(errno, fmt::format("cannot write {}", partial));
  wire::ExportRequest request;
  request.set_job_id(options.job_id);
  request.set_without_timing(options.without_timing);
  grpc::ClientContext context;
  auto reader = stub->Export(&context, request);
  for (wire::ExportedTrajectory trajectory; reader->Read(&trajectory);) {
    RETURN_IF_ERROR(base::WriteAll(file.get(), trajectory.json() + "\n", partial));
  }
  RETURN_IF_ERROR(FromGrpc(reader->Finish()));
  if (::fsync(file.get()) != 0)
    return base::ErrnoStatus(errno, fmt::format("cannot sync {}", partial));
  if (::rename(partial.c_str(), path.c_str()) != 0) {
    return base::ErrnoStatus(errno, fmt::format("cannot move {} to {}", partial, path));
  }
  return absl::OkStatus();
}

absl::StatusOr<RunJobSummary> Finish(Stub* stub, const RunJobOptions& options) {
  RunJobSummary summary;
  ASSIGN_OR_RETURN(summary.job, Wait(stub, options));
  if (summary.job.state() == "failed") {
    return absl::AbortedError(
        fmt::format("job {} failed: {}", options.job_id, summary.job.message()));
  }
  if (summary.job.decode_seconds() > 0) {
    summary.tokens_per_second =
        static_cast<double>(summary.job.decoded_this_run()) / summary.job.decode_seconds();
  }
  RETURN_IF_ERROR(base::MakeDirs(options.out_dir));
  summary.output_path = options.out_dir + "/trajectories.jsonl";
  RETURN_IF_ERROR(Export(stub, options, summary.output_path));
  return summary;
}

}  // namespace

absl::StatusOr<RunJobSummary> RunJob(const RunJobOptions& options) {
  ASSIGN_OR_RETURN(std::string toml, base::ReadFile(options.job_file, kMaxJobFileBytes));
  auto stub = Connect(options.address);
  wire::SubmitRequest submit;
  submit.set_spec_toml(toml);
  submit.set_spec_dir(std::filesystem::absolute(options.job_file).parent_path().string());
  submit.set_job_id(options.job_id);
  submit.set_spec_name(options.job_file);
  wire::Job job;
  grpc::ClientContext context;
  RETURN_IF_ERROR(FromGrpc(stub->Submit(&context, submit, &job)));
  RunJobOptions rest = options;
  rest.job_id = job.job_id();
  return Finish(stub.get(), rest);
}

absl::StatusOr<RunJobSummary> FinishJob(const RunJobOptions& options) {
  auto stub = Connect(options.address);
  return Finish(stub.get(), options);
}

absl::StatusOr<std::vector<wire::Job>> ListJobs(const std::string& address) {
  auto stub = Connect(address);
  wire::ListJobsResponse response;
  grpc::ClientContext context;
  RETURN_IF_ERROR(FromGrpc(stub->List(&context, {}, &response)));
  return std::vector<wire::Job>(response.jobs().begin(), response.jobs().end());
}

}  // namespace reprise::rollout
