#include "rollout/service.h"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>

#include "absl/cleanup/cleanup.h"
#include "absl/synchronization/mutex.h"
#include "base/clock.h"
#include "base/failpoint.h"
#include "base/fd.h"
#include "base/status_macros.h"
#include "rollout/delivery.h"
#include "rollout/describe.h"
#include "rollout/fork.h"
#include "rollout/identity.h"
#include "rollout/record.h"
#include "rollout/text.h"
#include "rollout/verify.h"

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
  out->set_parent_id(summary.parent_id);
  out->set_at_step(summary.at_step);
}

// The words of a weight update, and back. INVALID_ARGUMENT names what is allowed.
absl::Status ReadPolicy(const wire::LoadWeightsRequest& request, journal::WeightsRecord* record) {
  if (request.running() == "continue") {
    record->set_running(journal::RUNNING_SEQUENCES_CONTINUE);
  } else if (request.running() == "drain") {
    record->set_running(journal::RUNNING_SEQUENCES_DRAIN);
  } else if (!request.running().empty()) {
    return absl::InvalidArgumentError(
        fmt::format("running is \"{}\", allowed: continue, drain, or nothing", request.running()));
  }
  if (request.kv() == "keep") {
    record->set_kv(journal::KV_POLICY_KEEP);
  } else if (request.kv() == "recompute") {
    record->set_kv(journal::KV_POLICY_RECOMPUTE);
  } else if (!request.kv().empty()) {
    return absl::InvalidArgumentError(
        fmt::format("kv is \"{}\", allowed: keep, recompute, or nothing", request.kv()));
  }
  return absl::OkStatus();
}

wire::WeightVersion ToWire(const journal::WeightsRecord& record, bool in_force) {
  wire::WeightVersion out;
  out.set_model(record.model());
  out.set_version(record.version());
  out.set_directory(record.directory());
  out.set_digest(record.digest());
  if (record.running() != journal::RUNNING_SEQUENCES_UNSPECIFIED) {
    bool drain = record.running() == journal::RUNNING_SEQUENCES_DRAIN;
    out.set_running(drain ? "drain" : "continue");
  }
  if (record.kv() != journal::KV_POLICY_UNSPECIFIED) {
    out.set_kv(record.kv() == journal::KV_POLICY_KEEP ? "keep" : "recompute");
  }
  out.set_loaded_us(record.loaded_us());
  out.set_in_force(in_force);
  return out;
}

// Whether the record of a sample is known: where an invalid sample drops its group, or records tell
// of their group, once all of the group is sealed.
bool IsFinal(const JobRun& run, size_t index) {
  const JobSpec* spec = run.spec();
  if (spec == nullptr || (spec->on_invalid == OnInvalid::kMask && !spec->advantage))
    return run.IsWhole(index);
  const size_t first = index - index % run.group_size();
  for (size_t i = 0; i < run.group_size(); ++i) {
    if (!run.IsWhole(first + i)) return false;
  }
  return true;
}

class Service final : public wire::RolloutService::Service {
 public:
  Service(JobTable* jobs, replay::TrajectoryLog* log, Sandboxes* sandboxes)
      : jobs_(jobs), log_(log), sandboxes_(sandboxes), delivery_(log) {}

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
    for (size_t i = 0; i < run->size(); ++i) {
      while (!request->dropped()) {
        uint64_t seen = run->version();
        if (IsFinal(*run, i)) break;
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
      std::vector<std::string> ids;
      if (request->dropped()) ids = run->replaced_ids(i);
      const bool dropped = run->IsDropped(i / run->group_size());
      if (dropped == request->dropped() && IsFinal(*run, i)) {
        for (std::string& id : run->record_ids(i)) ids.push_back(std::move(id));
      }
      for (const std::string& id : ids) {
        wire::ExportedTrajectory out;
        out.set_trajectory_id(id);
        ASSIGN_OR_ANSWER(*out.mutable_json(), RecordJson(id, *run, request->without_timing()));
        if (!writer->Write(out)) return grpc::Status::CANCELLED;
      }
    }
    return grpc::Status::OK;
  }

  grpc::Status Lease(grpc::ServerContext* context, const wire::LeaseRequest* request,
                     grpc::ServerWriter<wire::LeaseAnswer>* writer) override {
    if (grpc::Status fits = CheckLease(*request); !fits.ok()) return fits;
    ASSIGN_OR_ANSWER(std::shared_ptr<JobRun> run, jobs_->Find(request->job_id()));
    absl::Cleanup leave = [this] { --lease_streams_; };
    if (++lease_streams_ > kMaxLeaseStreams) {
      return grpc::Status(grpc::StatusCode::RESOURCE_EXHAUSTED,
                          fmt::format("{} leases wait already, ask again later or with a shorter "
                                      "wait_ms",
                                      kMaxLeaseStreams));
    }
    const uint32_t groups = std::max(request->max_groups(), 1u);
    const int64_t lease_ms = request->lease_ms() == 0 ? kDefaultLeaseMs : request->lease_ms();
    const absl::Time give_up = absl::Now() + absl::Milliseconds(request->wait_ms());
    std::vector<Delivery::Lease> leases;
    while (!context->IsCancelled()) {
      uint64_t seen = run->version();
      ASSIGN_OR_ANSWER(leases, delivery_.Take(*run, groups, lease_ms, request->in_order()));
      absl::Duration left = give_up - absl::Now();
      if (!leases.empty() || left <= absl::ZeroDuration()) break;
      // Leases end, and groups come back, without a change of the job.
      run->WaitChange(seen, std::min(left, kStreamPoll));
    }
    for (size_t i = 0; i < leases.size(); ++i) {
      grpc::Status sent = SendGroup(*run, leases[i], writer);
      if (sent.ok()) continue;
      // Nobody can have these whole: they need not wait for the end of their leases.
      std::vector<Delivery::Fence> back;
      for (const Delivery::Lease& lease : leases) back.push_back({lease.group, lease.attempt});
      absl::Status given = delivery_.Release(*run, back);
      return given.ok() ? sent : ToGrpc(given);
    }
    ASSIGN_OR_ANSWER(Delivery::Counts counts, delivery_.Count(*run));
    wire::LeaseAnswer answer;
    answer.mutable_summary()->set_pending(counts.pending);
    answer.mutable_summary()->set_ready(counts.ready);
    answer.mutable_summary()->set_leased(counts.leased);
    answer.mutable_summary()->set_acknowledged(counts.acknowledged);
    answer.mutable_summary()->set_dropped(counts.dropped);
    answer.mutable_summary()->set_job_state(StateName(run->state()));
    return writer->Write(answer) ? grpc::Status::OK : grpc::Status::CANCELLED;
  }

  grpc::Status Ack(grpc::ServerContext*, const wire::SettleRequest* request,
                   wire::SettleAnswer*) override {
    return Settle(*request, &Delivery::Ack);
  }
  grpc::Status Release(grpc::ServerContext*, const wire::SettleRequest* request,
                       wire::SettleAnswer*) override {
    return Settle(*request, &Delivery::Release);
  }

  grpc::Status LoadWeights(grpc::ServerContext*, const wire::LoadWeightsRequest* request,
                           wire::LoadWeightsAnswer* answer) override {
    journal::WeightsRecord record;
    record.set_directory(request->directory());
    record.set_version(request->version());
    if (absl::Status policy = ReadPolicy(*request, &record); !policy.ok()) return ToGrpc(policy);
    if (!request->directory().starts_with('/')) {
      return grpc::Status(
          grpc::StatusCode::INVALID_ARGUMENT,
          fmt::format("directory is \"{}\", allowed: an absolute path", request->directory()));
    }
    ASSIGN_OR_ANSWER(Scheduler::Update update, jobs_->LoadWeights(request->model(), record));
    *answer->mutable_version() = ToWire(update.record, true);
    answer->set_switched(update.switched);
    answer->set_draining(update.draining);
    answer->set_stale(update.stale);
    return grpc::Status::OK;
  }

  grpc::Status ShowWeights(grpc::ServerContext*, const wire::ShowWeightsRequest* request,
                           wire::ShowWeightsResponse* answer) override {
    ASSIGN_OR_ANSWER(std::vector<journal::WeightsRecord> records, jobs_->Weights(request->model()));
    for (size_t i = 0; i < records.size(); ++i) {
      bool newest = i + 1 == records.size() || records[i + 1].model() != records[i].model();
      *answer->add_versions() = ToWire(records[i], newest);
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
      const size_t all = run->all();
      for (size_t i = 0; i < all; ++i) {
        Summary summary = run->summary(i);
        if (summary.tokens == 0) continue;  // not begun
        Fill(run->trajectory_id(i), run->id(), summary, answer->add_trajectories());
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

  grpc::Status ForkTrajectory(grpc::ServerContext*, const wire::ForkTrajectoryRequest* request,
                              wire::ForkedTrajectory* answer) override {
    absl::MutexLock one(&forking_);
    ASSIGN_OR_ANSWER(*answer, Fork(*request));
    return grpc::Status::OK;
  }

  grpc::Status VerifyTrajectory(grpc::ServerContext*, const wire::VerifyTrajectoryRequest* request,
                                wire::Verification* answer) override {
    const std::string& id = request->trajectory_id();
    ASSIGN_OR_ANSWER(std::vector<journal::TrajectoryEntry> entries, log_->Read(id));
    ASSIGN_OR_ANSWER(replay::TrajectoryState state, replay::Fold(entries));
    ASSIGN_OR_ANSWER(std::shared_ptr<JobRun> run, jobs_->Find(JobOf(id)));
    ASSIGN_OR_ANSWER(*answer, Verify(state, *run, sandboxes_));
    return grpc::Status::OK;
  }

 private:
  static grpc::Status CheckLease(const wire::LeaseRequest& request) {
    auto refuse = [](const char* field, int64_t value, int64_t most) {
      return grpc::Status(grpc::StatusCode::INVALID_ARGUMENT,
                          fmt::format("{} is {}, allowed: 0..{}", field, value, most));
    };
    if (request.max_groups() > kMaxLeasedGroups) {
      return refuse("max_groups", request.max_groups(), kMaxLeasedGroups);
    }
    if (request.lease_ms() < 0 || request.lease_ms() > kMaxLeaseMs) {
      return refuse("lease_ms", request.lease_ms(), kMaxLeaseMs);
    }
    if (request.wait_ms() < 0 || request.wait_ms() > kMaxLeaseWaitMs) {
      return refuse("wait_ms", request.wait_ms(), kMaxLeaseWaitMs);
    }
    return grpc::Status::OK;
  }

  grpc::Status SendGroup(const JobRun& run, const Delivery::Lease& lease,
                         grpc::ServerWriter<wire::LeaseAnswer>* writer) {
    std::vector<std::string> ids;
    for (size_t sample = 0; sample < run.group_size(); ++sample) {
      for (std::string& id : run.record_ids(lease.first + sample)) ids.push_back(std::move(id));
    }
    const auto size = static_cast<uint32_t>(ids.size());
    for (const std::string& id : ids) {
      wire::LeaseAnswer answer;
      wire::LeasedRecord* record = answer.mutable_record();
      record->set_group(lease.group);
      record->set_attempt(lease.attempt);
      record->set_lease_until_us(lease.until_us);
      record->set_group_size(size);
      record->set_trajectory_id(id);
      ASSIGN_OR_ANSWER(*record->mutable_json(), RecordJson(id, run, false));
      if (!writer->Write(answer)) return grpc::Status::CANCELLED;
    }
    return grpc::Status::OK;
  }

  grpc::Status Settle(const wire::SettleRequest& request,
                      absl::Status (Delivery::*settle)(const JobRun&,
                                                       const std::vector<Delivery::Fence>&)) {
    if (static_cast<uint32_t>(request.groups_size()) > kMaxLeasedGroups) {
      return grpc::Status(grpc::StatusCode::INVALID_ARGUMENT,
                          fmt::format("{} groups in one request, the most is {}",
                                      request.groups_size(), kMaxLeasedGroups));
    }
    ASSIGN_OR_ANSWER(std::shared_ptr<JobRun> run, jobs_->Find(request.job_id()));
    std::vector<Delivery::Fence> fences;
    for (const wire::LeasedGroup& group : request.groups()) {
      fences.push_back({group.group(), group.attempt()});
    }
    const absl::Status settled = (delivery_.*settle)(*run, fences);
    if (settled.ok()) jobs_->OnAcknowledged(run->id());
    return ToGrpc(settled);
  }

  grpc::Status AnswerJob(const std::string& job_id, const absl::Status& done, wire::Job* answer) {
    if (!done.ok()) return ToGrpc(done);
    ASSIGN_OR_ANSWER(std::shared_ptr<JobRun> run, jobs_->Find(job_id));
    *answer = run->ToProto();
    return grpc::Status::OK;
  }

  absl::StatusOr<wire::ForkedTrajectory> Fork(const wire::ForkTrajectoryRequest& request)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(forking_) {
    const std::string& parent = request.trajectory_id();
    ASSIGN_OR_RETURN(const std::vector<journal::TrajectoryEntry> entries, log_->Read(parent));
    const journal::TrajectoryStart& start = entries.front().start();
    ASSIGN_OR_RETURN(const std::shared_ptr<JobRun> run, jobs_->Find(start.job_id()));
    const JobSpec* spec = run->spec();
    if (spec == nullptr) {
      return absl::FailedPreconditionError(
          run->external()
              ? fmt::format("agents outside drive job {}: a prompt that does not go on where an "
                            "earlier one ended branches there",
                            run->id())
              : fmt::format("job {} cannot go on: {}", run->id(), Message(run->why_no_spec())));
    }
    // A task that is not the job's any more has no place in it.
    replay::TrajectoryState begun;
    begun.start = start;
    ASSIGN_OR_RETURN(const Task* task, TaskOf(begun, *spec));
    const size_t place = run->PlaceOf(start);
    if (!start.has_fork() && run->trajectory_id(place) != parent) {
      return absl::FailedPreconditionError(fmt::format(
          "trajectory {} was replaced by {}: fork that one", parent, run->trajectory_id(place)));
    }
    ASSIGN_OR_RETURN(const bool leased, delivery_.IsLeased(*run, run->position_of(place)));
    if (leased) {
      return absl::FailedPreconditionError(fmt::format(
          "group {} of job {} is leased: fork once it is settled, or its lease has ended",
          task->group, run->id()));
    }
    ForkPlan plan;
    plan.number = run->NextForkNumber(place);
    plan.id = ForkId(TrajectoryId(run->id(), task->group, start.sample()), plan.number);
    plan.at_step = request.at_step();
    plan.seed = request.has_seed() ? request.seed()
                                   : ForkSeed(spec->seed, task->id, start.sample(), plan.number);
    ASSIGN_OR_RETURN(std::vector<journal::TrajectoryEntry> log, ForkLog(entries, plan));
    log.front().mutable_start()->set_started_us(base::WallMicros());
    const journal::ForkStart fork = log.front().start().fork();
    wire::ForkedTrajectory answer;
    answer.set_trajectory_id(plan.id);
    answer.set_shared_tokens(fork.shared_tokens());
    for (const journal::TrajectoryEntry& entry : log)
      answer.set_shared_calls(answer.shared_calls() + (entry.has_issued() ? 1 : 0));
    // Now, so that whoever asks hears why it cannot be made; a daemon that dies here makes it again
    // for the next fork, or for the first call of this one.
    if (!fork.last_call_id().empty()) {
      RETURN_IF_ERROR(sandboxes_->Fork(fork.sandbox_id(), SandboxId(plan.id), fork.last_call_id()));
    }
    base::FailPoint("fork.sandbox");
    RETURN_IF_ERROR(jobs_->AddFork(run->id(), std::move(log)));
    return answer;
  }

  absl::StatusOr<std::string> RecordJson(const std::string& id, const JobRun& run,
                                         bool without_timing) {
    absl::StatusOr<std::vector<journal::TrajectoryEntry>> entries = log_->Read(id);
    if (absl::IsNotFound(entries.status()) && !without_timing) {
      // Dropped, and its record kept.
      absl::StatusOr<journal::TrajectoryHead> head = log_->Head(id);
      if (head.ok() && !head->exported().empty()) {
        ASSIGN_OR_RETURN(std::string record, base::ReadFile(head->exported()));
        while (record.ends_with('\n')) record.pop_back();
        return record;
      }
    }
    RETURN_IF_ERROR(entries.status());
    ASSIGN_OR_RETURN(replay::TrajectoryState state, replay::Fold(*entries));
    return ExportRecord(state, run, without_timing);
  }

  JobTable* const jobs_;
  replay::TrajectoryLog* const log_;
  Sandboxes* const sandboxes_;
  Delivery delivery_;
  std::atomic<int> lease_streams_{0};
  absl::Mutex forking_;  // one at a time: each takes the next number
};

}  // namespace

std::unique_ptr<wire::RolloutService::Service> MakeRolloutService(JobTable* jobs,
                                                                  replay::TrajectoryLog* log,
                                                                  Sandboxes* sandboxes) {
  return std::make_unique<Service>(jobs, log, sandboxes);
}

}  // namespace reprise::rollout
