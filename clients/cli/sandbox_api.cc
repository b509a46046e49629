#include "clients/cli/sandbox_api.h"

#include <fmt/format.h>
#include <grpcpp/grpcpp.h>

#include <chrono>
#include <utility>

#include "base/fd.h"
#include "base/status_macros.h"
#include "clients/cli/context.h"
#include "clients/cli/sockets.h"
#include "reprise/sandbox/v1/sandbox.grpc.pb.h"

namespace reprise::cli {
namespace {

constexpr int kMessageBytesMax = 64 << 20;
constexpr uint64_t kTokenFileBytesMax = 64 << 10;
constexpr std::chrono::seconds kConnectMax{5};

absl::Status FromGrpc(const grpc::Status& status) {
  if (status.ok()) return absl::OkStatus();
  std::string text = status.error_message();
  if (status.error_code() == grpc::StatusCode::UNAUTHENTICATED) text += "; give --token-file";
  return absl::Status(static_cast<absl::StatusCode>(status.error_code()), text);
}

class SandboxApiImpl final : public SandboxApi {
 public:
  SandboxApiImpl(std::string token, const std::shared_ptr<grpc::Channel>& channel)
      : token_(std::move(token)), stub_(sandbox_wire::SandboxService::NewStub(channel)) {}

  absl::StatusOr<sandbox_wire::CreateResponse> Create(
      const sandbox_wire::CreateRequest& request) override {
    return Ask(&Stub::Create, request);
  }
  absl::StatusOr<sandbox_wire::ListResponse> List() override {
    return Ask(&Stub::List, sandbox_wire::ListRequest());
  }
  absl::StatusOr<sandbox_wire::StopResponse> Stop(const std::string& sandbox_id) override {
    return Ask(&Stub::Stop, Of<sandbox_wire::StopRequest>(sandbox_id));
  }
  absl::Status Pause(const std::string& sandbox_id) override {
    return Ask(&Stub::Pause, Of<sandbox_wire::PauseRequest>(sandbox_id)).status();
  }
  absl::Status Resume(const std::string& sandbox_id) override {
    return Ask(&Stub::Resume, Of<sandbox_wire::ResumeRequest>(sandbox_id)).status();
  }
  absl::Status SetNetwork(const sandbox_wire::SetNetworkRequest& request) override {
    return Ask(&Stub::SetNetwork, request).status();
  }
  absl::StatusOr<sandbox_wire::GetNetworkResponse> GetNetwork(
      const std::string& sandbox_id) override {
    return Ask(&Stub::GetNetwork, Of<sandbox_wire::GetNetworkRequest>(sandbox_id));
  }
  absl::StatusOr<sandbox_wire::ListTiersResponse> ListTiers() override {
    return Ask(&Stub::ListTiers, sandbox_wire::ListTiersRequest());
  }
  absl::StatusOr<sandbox_wire::ListCallsResponse> ListCalls(
      const std::string& sandbox_id) override {
    return Ask(&Stub::ListCalls, Of<sandbox_wire::ListCallsRequest>(sandbox_id));
  }
  absl::Status WriteStdin(const sandbox_wire::WriteStdinRequest& request) override {
    return Ask(&Stub::WriteStdin, request).status();
  }
  absl::Status Resize(const sandbox_wire::ResizeRequest& request) override {
    return Ask(&Stub::Resize, request).status();
  }
  absl::StatusOr<sandbox_wire::SnapshotInfo> Snapshot(
      const sandbox_wire::SnapshotRequest& request) override {
    return Ask(&Stub::Snapshot, request);
  }
  absl::StatusOr<sandbox_wire::ListSnapshotsResponse> ListSnapshots(
      const std::string& sandbox_id) override {
    return Ask(&Stub::ListSnapshots, Of<sandbox_wire::ListSnapshotsRequest>(sandbox_id));
  }
  absl::StatusOr<sandbox_wire::CreateResponse> Fork(
      const sandbox_wire::ForkRequest& request) override {
    return Ask(&Stub::Fork, request);
  }
  absl::StatusOr<sandbox_wire::RestoreResponse> Restore(const std::string& sandbox_id) override {
    return Ask(&Stub::Restore, Of<sandbox_wire::RestoreRequest>(sandbox_id));
  }
  absl::Status Cancel(const std::string& call_id) override {
    sandbox_wire::SignalRequest request;
    request.set_call_id(call_id);
    request.set_cancel(true);
    return Ask(&Stub::Signal, request).status();
  }
  absl::StatusOr<sandbox_wire::ConsoleResponse> Console(
      const sandbox_wire::ConsoleRequest& request) override {
    return Ask(&Stub::Console, request);
  }
  absl::StatusOr<sandbox_wire::ScreenshotResponse> Screenshot(
      const std::string& sandbox_id) override {
    return Ask(&Stub::Screenshot, Of<sandbox_wire::ScreenshotRequest>(sandbox_id));
  }
  absl::Status SendInput(const sandbox_wire::SendInputRequest& request) override {
    return Ask(&Stub::SendInput, request).status();
  }
  absl::StatusOr<sandbox_wire::Image> ImportImage(const std::string& name,
                                                  const std::string& source) override {
    sandbox_wire::ImportImageRequest request;
    request.set_name(name);
    request.set_source(source);
    return Ask(&Stub::ImportImage, request);
  }
  absl::StatusOr<sandbox_wire::ListImagesResponse> ListImages() override {
    return Ask(&Stub::ListImages, sandbox_wire::ListImagesRequest());
  }
  absl::Status RemoveImage(const std::string& name) override {
    sandbox_wire::RemoveImageRequest request;
    request.set_name(name);
    return Ask(&Stub::RemoveImage, request).status();
  }

  absl::StatusOr<sandbox_wire::Result> Execute(const sandbox_wire::ExecuteRequest& request,
                                               const OnEvent& on_event) override {
    grpc::ClientContext context;
    Authorize(&context);
    return Follow(stub_->Execute(&context, request), on_event);
  }
  absl::StatusOr<sandbox_wire::Result> Attach(const std::string& call_id,
                                              const OnEvent& on_event) override {
    grpc::ClientContext context;
    Authorize(&context);
    sandbox_wire::AttachRequest request;
    request.set_call_id(call_id);
    return Follow(stub_->Attach(&context, request), on_event);
  }

  absl::Status Watch(
      const sandbox_wire::WatchRequest& request,
      const std::function<bool(const sandbox_wire::WatchEvent&)>& on_event) override {
    Authorize(&watch_);
    auto reader = stub_->Watch(&watch_, request);
    sandbox_wire::WatchEvent event;
    bool wanted = true;
    while (wanted && reader->Read(&event)) wanted = on_event(event);
    if (!wanted) watch_.TryCancel();
    const absl::Status ended = FromGrpc(reader->Finish());
    return wanted ? ended : absl::OkStatus();
  }
  void CancelWatch() override { watch_.TryCancel(); }

  absl::Status ReadFile(const std::string& sandbox_id, const std::string& path,
                        const std::function<absl::Status(std::string_view)>& on_data) override {
    grpc::ClientContext context;
    Authorize(&context);
    auto request = Of<sandbox_wire::ReadFileRequest>(sandbox_id);
    request.set_path(path);
    auto reader = stub_->ReadFile(&context, request);
    absl::Status taken;
    sandbox_wire::FileChunk chunk;
    while (reader->Read(&chunk)) {
      if (!taken.ok()) continue;
      taken = on_data(chunk.data());
      if (!taken.ok()) context.TryCancel();
    }
    absl::Status done = FromGrpc(reader->Finish());
    return taken.ok() ? done : taken;
  }

  absl::StatusOr<uint64_t> WriteFile(
      const std::string& sandbox_id, const std::string& path, uint32_t mode,
      const std::function<absl::StatusOr<std::string>()>& next) override {
    grpc::ClientContext context;
    Authorize(&context);
    sandbox_wire::WriteFileResponse response;
    auto writer = stub_->WriteFile(&context, &response);
    auto request = Of<sandbox_wire::WriteFileRequest>(sandbox_id);
    request.set_path(path);
    request.set_mode(mode);
    while (true) {
      absl::StatusOr<std::string> data = next();
      if (!data.ok()) {
        context.TryCancel();
        writer->Finish();
        return data.status();
      }
      bool last = data->empty();
      request.set_data(*std::move(data));
      if (!writer->Write(request) || last) break;
      request.Clear();
    }
    writer->WritesDone();
    RETURN_IF_ERROR(FromGrpc(writer->Finish()));
    return response.bytes();
  }

 private:
  using Stub = sandbox_wire::SandboxService::Stub;

  template <typename Request>
  static Request Of(const std::string& sandbox_id) {
    Request request;
    request.set_sandbox_id(sandbox_id);
    return request;
  }

  void Authorize(grpc::ClientContext* context) const {
    if (!token_.empty()) context->AddMetadata("authorization", fmt::format("Bearer {}", token_));
  }

  template <typename Request, typename Response>
  absl::StatusOr<Response> Ask(grpc::Status (Stub::*verb)(grpc::ClientContext*, const Request&,
                                                          Response*),
                               const Request& request) {
    grpc::ClientContext context;
    Authorize(&context);
    Response response;
    RETURN_IF_ERROR(FromGrpc((stub_.get()->*verb)(&context, request, &response)));
    return response;
  }

  static absl::StatusOr<sandbox_wire::Result> Follow(
      std::unique_ptr<grpc::ClientReader<sandbox_wire::ExecuteEvent>> reader,
      const OnEvent& on_event) {
    sandbox_wire::Result result;
    bool ended = false;
    sandbox_wire::ExecuteEvent event;
    while (reader->Read(&event)) {
      if (event.has_result()) {
        result = event.result();
        ended = true;
      } else if (on_event) {
        on_event(event);
      }
    }
    RETURN_IF_ERROR(FromGrpc(reader->Finish()));
    if (!ended) return absl::UnavailableError("sandboxd ended before the call did");
    return result;
  }

  const std::string token_;
  const std::unique_ptr<Stub> stub_;
  grpc::ClientContext watch_;  // of the one watch that a command has
};

}  // namespace

absl::StatusOr<std::string> SandboxAddress(const SandboxTarget& target) {
  if (!target.server.empty()) return target.server;
  if (!target.state.empty()) return SocketOf(target.state, "sandboxd.sock");
  return UsageError(
      "no daemon named: give --state DIR as `reprise up --state DIR` has it, or --server ADDR");
}

absl::StatusOr<std::string> ReadToken(const std::string& path) {
  if (path.empty()) return std::string();
  ASSIGN_OR_RETURN(std::string token, base::ReadFile(path, kTokenFileBytesMax));
  token.erase(token.find_last_not_of(" \t\r\n") + 1);
  return token;
}

absl::StatusOr<std::unique_ptr<SandboxApi>> SandboxApi::Connect(const SandboxTarget& target) {
  ASSIGN_OR_RETURN(std::string address, SandboxAddress(target));
  ASSIGN_OR_RETURN(std::string token, ReadToken(target.token_file));
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(-1);
  arguments.SetMaxSendMessageSize(kMessageBytesMax);
  arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  auto channel = grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), arguments);
  if (!Answers(address) ||
      !channel->WaitForConnected(std::chrono::system_clock::now() + kConnectMax)) {
    std::string state = target.server.empty() ? target.state : "DIR";
    return absl::UnavailableError(fmt::format(
        "no sandboxd answers at {}: start one with `reprise up --state {}`", address, state));
  }
  return std::make_unique<SandboxApiImpl>(std::move(token), channel);
}

}  // namespace reprise::cli
