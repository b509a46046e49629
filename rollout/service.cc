#include "rollout/service.h"

#include <fmt/format.h>

#include <atomic>

#include "base/status_macros.h"
#include "rollout/describe.h"
#include "rollout/record.h"
#include "rollout/text.h"

namespace reprise::rollout {
namespace {

grpc::Status ToGrpc(const absl::Status& status) {
  return grpc::Status(static_cast<grpc::StatusCode>(status.code()), Message(status));
}

// Unwraps an absl::StatusOr in a handler.
#define ASSIGN_OR_ANSWER(lhs, expr) \
  ASSIGN_OR_ANSWER_IMPL(REPRISE_CONCAT(answer_, __LINE__), lhs, expr)
#define ASSIGN_OR_ANSWER_IMPL(tmp, lhs, expr) \
  auto tmp = (expr);                          \
  if (!tmp.ok()) return ToGrpc(tmp.status()); \
  lhs = std::move(tmp).value()

// <job>/<group>/<sample> -> <job>
std::string JobOf(const std::string& trajectory_id) {
  size_t end = trajectory_id.rfind('/');
  if (end != std::string::npos && end > 0) end = trajectory_id.rfind('/', end - 1);
  return end == std::string::npos ? "" : trajectory_id.substr(0, end);
}

void Fill(const std::string& id, const std::string& job_id, const Summary& summary,
          wire::Trajectory* out) {
  out->set_trajectory_id(id);
  out->set_job_id(job_id);
  out->set_task_id(summary.task_id);
  out->set_status(summary.status);
  out->set_stop_reason(summary.stop_reason);
  out->set_tokens(summary.tokens);
  out->set_sampled(summary.sampled);
  out->set_calls(summary.calls);
  out->set_has_reward(summary.has_reward);
  out->set_reward(summary.reward);
}

class Service final : public wire::RolloutService::Service {
 public:
  Service(JobTable* jobs, replay::TrajectoryLog* log) : jobs_(jobs), log_(log) {}

  grpc::Status Submit(grpc::ServerContext*, const wire::SubmitRequest* request,
                      wire::Job* answer) override {
    if (request->spec_toml().size() > kMaxSpecBytes) {
      return grpc::Status(grpc::StatusCode::INVALID_ARGUMENT,
                          fmt::format("the job file has {} bytes, the most is {}",
                                      request->spec_toml().size(), kMaxSpecBytes));
    }
    ASSIGN_OR_ANSWER(std::shared_ptr<JobRun> run,
                     jobs_->Submit(request->spec_toml(), request->spec_dir(), request->job_id(),
                                   request->spec_name()));
    *answer = run->ToProto();
    return grpc::Status::OK;
  }

  grpc::Status Get(grpc::ServerContext*, const wire::GetJobRequest* request,
                   wire::Job* answer) override {
    return AnswerJob(request->job_id(), absl::OkStatus(), answer);
  }

  grpc::Status List(grpc::ServerContext*, const wire::ListJobsRequest*,
                    wire::ListJobsResponse* answer) override {
    ASSIGN_OR_ANSWER(auto runs, jobs_->List());
    for (const auto& run : runs) *answer->add_jobs() = run->ToProto();
    return grpc::Status::OK;
  }

  grpc::Status Pause(grpc::ServerContext*, const wire::PauseJobRequest* request,
                     wire::Job* answer) override {
    return AnswerJob(request->job_id(), jobs_->Pause(request->job_id()), answer);
  }
  grpc::Status Resume(grpc::ServerContext*, const wire::ResumeJobRequest* request,
                      wire::Job* answer) override {
    return AnswerJob(request->job_id(), jobs_->Resume(request->job_id()), answer);
  }
  grpc::Status Cancel(grpc::ServerContext*, const wire::CancelJobRequest* request,
                      wire::Job* answer) override {
    return AnswerJob(request->job_id(), jobs_->Cancel(request->job_id()), answer);
  }

  grpc::Status Watch(grpc::ServerContext* context, const wire::GetJobRequest* request,
                     grpc::ServerWriter<wire::Job>* writer) override {
    while (!context->IsCancelled()) {
      ASSIGN_OR_ANSWER(std::shared_ptr<JobRun> run, jobs_->Find(request->job_id()));
      uint64_t seen = run->version();
      wire::Job job = run->ToProto();
      bool open = job.state() == "running" || job.state() == "paused";
      if (!writer->Write(job) || !open) return grpc::Status::OK;
      absl::Time next = absl::Now() + kStreamPoll;
      while (!context->IsCancelled() && !run->WaitChange(seen, kStreamPoll)) {
      }
      // Changes that come faster than the limit are one answer.
      run->WaitChange(UINT64_MAX, next - absl::Now());
    }
    return grpc::Status::OK;
  }

  grpc::Status Export(grpc::ServerContext* context, const wire::ExportRequest* request,
                      grpc::ServerWriter<wire::ExportedTrajectory>* writer) override {
    ASSIGN_OR_ANSWER(std::shared_ptr<JobRun> run, jobs_->Find(request->job_id()));
    for (size_t i = 0; i < run->trajectory_ids().size(); ++i) {
      while (true) {
        uint64_t seen = run->version();
        if (run->summary(i).sealed) break;
        journal::JobState state = run->state();
        bool open = state == journal::JOB_STATE_RUNNING || state == journal::JOB_STATE_PAUSED ||
                    state == journal::JOB_STATE_CANCELLED;
        if (!request->follow()) break;
        if (!open) {
          return grpc::Status(grpc::StatusCode::ABORTED,
                              fmt::format("job {} is {}: {}", run->id(), StateName(state),
                                          run->record().message()));
        }
        if (context->IsCancelled()) return grpc::Status::CANCELLED;
        run->WaitChange(seen, kStreamPoll);
      }
      if (!run->summary(i).sealed) continue;
      const std::string& id = run->trajectory_ids()[i];
      wire::ExportedTrajectory out;
      out.set_trajectory_id(id);
      ASSIGN_OR_ANSWER(*out.mutable_json(), RecordJson(id, *run, request->without_timing()));
      if (!writer->Write(out)) return grpc::Status::CANCELLED;
    }
    return grpc::Status::OK;
  }

  grpc::Status ListTrajectories(grpc::ServerContext*, const wire::ListTrajectoriesRequest* request,
                                wire::ListTrajectoriesResponse* answer) override {
    std::vector<std::shared_ptr<JobRun>> runs;
    if (request->job_id().empty()) {
      ASSIGN_OR_ANSWER(runs, jobs_->List());
    } else {
      ASSIGN_OR_ANSWER(std::shared_ptr<JobRun> run, jobs_->Find(request->job_id()));
      runs.push_back(std::move(run));
    }
    for (const auto& run : runs) {
      for (size_t i = 0; i < run->trajectory_ids().size(); ++i) {
        Summary summary = run->summary(i);
        if (summary.tokens == 0) continue;  // not begun
        Fill(run->trajectory_ids()[i], run->id(), summary, answer->add_trajectories());
      }
    }
    return grpc::Status::OK;
  }

  grpc::Status GetTrajectory(grpc::ServerContext*, const wire::GetTrajectoryRequest* request,
                             wire::Trajectory* answer) override {
    const std::string& id = request->trajectory_id();
    auto entries = log_->Read(id);
    if (absl::IsNotFound(entries.status())) {
      return grpc::Status(
          grpc::StatusCode::NOT_FOUND,
          fmt::format(
              "trajectory \"{}\" has no log here, `reprise trajectory ls` lists those that have",
              id));
    }
    if (!entries.ok()) return ToGrpc(entries.status());
    ASSIGN_OR_ANSWER(replay::TrajectoryState state, replay::Fold(*entries));
    Fill(id, state.start.job_id(), Summarize(state), answer);
    auto run = jobs_->Find(JobOf(id));
    for (std::string& line : DescribeLog(*entries, run.ok() ? (*run)->tokenizer() : nullptr)) {
      answer->add_log(std::move(line));
    }
    if (state.sealed) {
      if (!run.ok()) return ToGrpc(run.status());
      auto record = RecordJson(id, **run, false);
      // The log can be read even where the files that a whole record needs are gone.
      if (!record.ok() && !absl::IsFailedPrecondition(record.status()))
        return ToGrpc(record.status());
      if (record.ok()) answer->set_record_json(*std::move(record));
    }
    return grpc::Status::OK;
  }

 private:
  grpc::Status AnswerJob(const std::string& job_id, const absl::Status& done, wire::Job* answer) {
    if (!done.ok()) return ToGrpc(done);
    ASSIGN_OR_ANSWER(std::shared_ptr<JobRun> run, jobs_->Find(job_id));
    *answer = run->ToProto();
    return grpc::Status::OK;
  }

  absl::StatusOr<std::string> RecordJson(const std::string& id, const JobRun& run,
                                         bool without_timing) {
    ASSIGN_OR_RETURN(std::vector<journal::TrajectoryEntry> entries, log_->Read(id));
    ASSIGN_OR_RETURN(replay::TrajectoryState state, replay::Fold(entries));
    return ExportRecord(state, run, without_timing);
  }

  JobTable* const jobs_;
  replay::TrajectoryLog* const log_;
};

}  // namespace

std::unique_ptr<wire::RolloutService::Service> MakeRolloutService(JobTable* jobs,
                                                                  replay::TrajectoryLog* log) {
  return std::make_unique<Service>(jobs, log);
}

}  // namespace reprise::rollout
