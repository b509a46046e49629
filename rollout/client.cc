#include "rollout/client.h"

#include <fmt/format.h>
#include <grpcpp/grpcpp.h>

#include <set>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "base/status_macros.h"
#include "reprise/rollout/v1/rollout.grpc.pb.h"

namespace reprise::rollout {
namespace {

class RolloutClientImpl final : public RolloutClient {
 public:
  RolloutClientImpl(std::string address, const std::shared_ptr<grpc::Channel>& channel)
      : address_(std::move(address)), stub_(wire::RolloutService::NewStub(channel)) {}

  absl::StatusOr<wire::Job> Submit(const wire::SubmitRequest& request) override {
    return Unary<wire::Job>(
        [&](auto* context, auto* job) { return stub_->Submit(context, request, job); });
  }
  absl::StatusOr<wire::Job> Get(const std::string& job_id) override {
    return OfJob<wire::GetJobRequest>(job_id, [&](auto* context, const auto& request, auto* job) {
      return stub_->Get(context, request, job);
    });
  }
  absl::StatusOr<wire::LoadWeightsAnswer> LoadWeights(
      const wire::LoadWeightsRequest& request) override {
    return Unary<wire::LoadWeightsAnswer>(
        [&](auto* context, auto* answer) { return stub_->LoadWeights(context, request, answer); });
  }
  absl::StatusOr<wire::ShowWeightsResponse> ShowWeights(const std::string& model) override {
    wire::ShowWeightsRequest request;
    request.set_model(model);
    return Unary<wire::ShowWeightsResponse>(
        [&](auto* context, auto* answer) { return stub_->ShowWeights(context, request, answer); });
  }
  absl::StatusOr<wire::ListJobsResponse> List() override {
    return Unary<wire::ListJobsResponse>([&](auto* context, auto* response) {
      return stub_->List(context, wire::ListJobsRequest(), response);
    });
  }
  absl::StatusOr<wire::Job> Pause(const std::string& job_id) override {
    return OfJob<wire::PauseJobRequest>(job_id, [&](auto* context, const auto& request, auto* job) {
      return stub_->Pause(context, request, job);
    });
  }
  absl::StatusOr<wire::Job> Resume(const std::string& job_id) override {
    return OfJob<wire::ResumeJobRequest>(job_id,
                                         [&](auto* context, const auto& request, auto* job) {
                                           return stub_->Resume(context, request, job);
                                         });
  }
  absl::StatusOr<wire::Job> Cancel(const std::string& job_id) override {
    return OfJob<wire::CancelJobRequest>(job_id,
                                         [&](auto* context, const auto& request, auto* job) {
                                           return stub_->Cancel(context, request, job);
                                         });
  }

  absl::StatusOr<wire::Job> Watch(const std::string& job_id,
                                  const std::function<void(const wire::Job&)>& on_job) override {
    wire::GetJobRequest request;
    request.set_job_id(job_id);
    wire::Job job;
    RETURN_IF_ERROR(Do([&](grpc::ClientContext* context) {
      auto reader = stub_->Watch(context, request);
      while (reader->Read(&job)) {
        if (on_job) on_job(job);
      }
      return reader->Finish();
    }));
    return job;
  }

  absl::Status Export(
      const wire::ExportRequest& request,
      const std::function<absl::Status(const wire::ExportedTrajectory&)>& on_record) override {
    absl::Status taken;
    absl::Status done = Do([&](grpc::ClientContext* context) {
      auto reader = stub_->Export(context, request);
      wire::ExportedTrajectory record;
      while (reader->Read(&record)) {
        if (!taken.ok()) continue;
        taken = on_record(record);
        if (!taken.ok()) context->TryCancel();
      }
      return reader->Finish();
    });
    return taken.ok() ? done : taken;
  }

  absl::StatusOr<wire::ListTrajectoriesResponse> ListTrajectories(
      const std::string& job_id) override {
    wire::ListTrajectoriesRequest request;
    request.set_job_id(job_id);
    return Unary<wire::ListTrajectoriesResponse>([&](auto* context, auto* response) {
      return stub_->ListTrajectories(context, request, response);
    });
  }
  absl::StatusOr<wire::Trajectory> GetTrajectory(const std::string& trajectory_id) override {
    wire::GetTrajectoryRequest request;
    request.set_trajectory_id(trajectory_id);
    return Unary<wire::Trajectory>([&](auto* context, auto* response) {
      return stub_->GetTrajectory(context, request, response);
    });
  }

  absl::StatusOr<wire::Verification> VerifyTrajectory(const std::string& trajectory_id) override {
    wire::VerifyTrajectoryRequest request;
    request.set_trajectory_id(trajectory_id);
    return Unary<wire::Verification>([&](auto* context, auto* response) {
      return stub_->VerifyTrajectory(context, request, response);
    });
  }

  absl::StatusOr<wire::ForkedTrajectory> ForkTrajectory(
      const wire::ForkTrajectoryRequest& request) override {
    return Unary<wire::ForkedTrajectory>([&](auto* context, auto* response) {
      return stub_->ForkTrajectory(context, request, response);
    });
  }

  void Shutdown() override {
    absl::MutexLock lock(&mutex_);
    down_ = true;
    for (grpc::ClientContext* context : open_) context->TryCancel();
  }

 private:
  template <typename Request, typename Call>
  absl::StatusOr<wire::Job> OfJob(const std::string& job_id, Call call) {
    Request request;
    request.set_job_id(job_id);
    return Unary<wire::Job>([&](auto* context, auto* job) { return call(context, request, job); });
  }
  template <typename Response, typename Call>
  absl::StatusOr<Response> Unary(Call call) {
    Response response;
    RETURN_IF_ERROR(Do([&](grpc::ClientContext* context) { return call(context, &response); }));
    return response;
  }

  absl::Status Do(const std::function<grpc::Status(grpc::ClientContext*)>& call) {
    grpc::ClientContext context;
    {
      absl::MutexLock lock(&mutex_);
      if (down_) return absl::CancelledError("the client was shut down");
      open_.insert(&context);
    }
    grpc::Status status = call(&context);
    absl::MutexLock lock(&mutex_);
    open_.erase(&context);
    if (down_) return absl::CancelledError("the client was shut down");
    if (status.ok()) return absl::OkStatus();
    std::string text = status.error_message();
    if (status.error_code() == grpc::StatusCode::UNAVAILABLE) {
      text = fmt::format("rolloutd at {} does not answer: {}", address_, text);
    }
    return absl::Status(static_cast<absl::StatusCode>(status.error_code()), text);
  }

  const std::string address_;
  const std::unique_ptr<wire::RolloutService::Stub> stub_;
  absl::Mutex mutex_;
  bool down_ ABSL_GUARDED_BY(mutex_) = false;
  std::set<grpc::ClientContext*> open_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace

std::unique_ptr<RolloutClient> RolloutClient::Connect(const std::string& address) {
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(-1);  // a record is as long as its trajectory
  arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  return std::make_unique<RolloutClientImpl>(
      address, grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), arguments));
}

}  // namespace reprise::rollout
