#include "sandboxd/client/sandbox_client.h"

#include <algorithm>
#include <set>
#include <utility>

#include <fmt/format.h>
#include <grpcpp/grpcpp.h>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "base/format.h"
#include "base/ids.h"
#include "base/status_macros.h"
#include "reprise/sandbox/v1/sandbox.grpc.pb.h"

namespace reprise::sandboxd {
namespace {

constexpr int kMessageBytesMax = 64 << 20;
constexpr int kReconnectMinMs = 20, kReconnectMaxMs = 500;
constexpr absl::Duration kLookForShutdown = absl::Milliseconds(50);

// Nobody but Shutdown cancels here: CANCELLED without it comes from a daemon that ended.
bool MayTryAgain(const grpc::Status& status) {
  return status.error_code() == grpc::StatusCode::UNAVAILABLE ||
         status.error_code() == grpc::StatusCode::CANCELLED;
}

absl::Status FromGrpc(const grpc::Status& status, const std::string& address) {
  if (status.ok()) return absl::OkStatus();
  std::string text = status.error_message();
  if (status.error_code() == grpc::StatusCode::UNAVAILABLE) {
    text = fmt::format("sandboxd at {} does not answer: {}", address, text);
  }
  return absl::Status(static_cast<absl::StatusCode>(status.error_code()), text);
}

// The end of one stream of output, as one attempt received it.
struct Tail {
  std::string data;
  uint64_t next = 0;  // first byte not received yet
  bool cut = false;   // data is not all of it

  void Take(uint64_t offset, std::string_view piece, size_t bytes_max) {
    cut = cut || offset > next;  // dropped by the daemon's cap
    next = offset + piece.size();
    data.append(piece);
    // Cut only now and then: erasing from the front costs the length of the rest.
    if (data.size() > 2 * bytes_max) Trim(bytes_max);
  }
  void Trim(size_t bytes_max) {
    if (data.size() <= bytes_max) return;
    data.erase(0, data.size() - bytes_max);
    cut = true;
  }
};

// Passes output on, each byte once over all attempts.
class Forwarder {
 public:
  explicit Forwarder(const SandboxClient::OnOutput& to) : to_(to) {}
  void Take(const sandbox::Output& output) {
    uint64_t& next = output.stream() == sandbox::STREAM_STDERR ? err_next_ : out_next_;
    std::string_view data = output.data();
    if (to_ == nullptr || output.offset() + data.size() <= next) return;
    if (output.offset() < next) data.remove_prefix(next - output.offset());
    next = output.offset() + output.data().size();
    to_(output.stream(), next - data.size(), data);
  }

 private:
  const SandboxClient::OnOutput& to_;
  uint64_t out_next_ = 0, err_next_ = 0;
};

class SandboxClientImpl final : public SandboxClient {
 public:
  SandboxClientImpl(ClientOptions options, std::shared_ptr<grpc::Channel> channel)
      : options_(std::move(options)),
        channel_(std::move(channel)),
        stub_(sandbox::SandboxService::NewStub(channel_)) {}

  absl::StatusOr<sandbox::CreateResponse> Create(sandbox::CreateRequest request,
                                                 absl::Time deadline) override {
    if (request.sandbox_id().empty())
      request.set_sandbox_id(fmt::format("sb-{}", base::RandomHex(8)));
    return Unary<sandbox::CreateResponse>(deadline, [&](auto* context, auto* response) {
      return stub_->Create(context, request, response);
    });
  }
  absl::StatusOr<sandbox::Sandbox> Get(const std::string& sandbox_id,
                                       absl::Time deadline) override {
    sandbox::GetRequest request;
    request.set_sandbox_id(sandbox_id);
    return Unary<sandbox::Sandbox>(deadline, [&](auto* context, auto* response) {
      return stub_->Get(context, request, response);
    });
  }
  absl::StatusOr<sandbox::StopResponse> Stop(const std::string& sandbox_id,
                                             absl::Time deadline) override {
    sandbox::StopRequest request;
    request.set_sandbox_id(sandbox_id);
    return Unary<sandbox::StopResponse>(deadline, [&](auto* context, auto* response) {
      return stub_->Stop(context, request, response);
    });
  }
  absl::Status Forget(const std::string& sandbox_id, absl::Time deadline) override {
    sandbox::ForgetRequest request;
    request.set_sandbox_id(sandbox_id);
    return Unary<sandbox::ForgetResponse>(deadline,
                                          [&](auto* context, auto* response) {
                                            return stub_->Forget(context, request, response);
                                          })
        .status();
  }
  absl::Status Pause(const std::string& sandbox_id, absl::Time deadline) override {
    sandbox::PauseRequest request;
    request.set_sandbox_id(sandbox_id);
    return Unary<sandbox::PauseResponse>(deadline,
                                         [&](auto* context, auto* response) {
                                           return stub_->Pause(context, request, response);
                                         })
        .status();
  }
  absl::StatusOr<sandbox::SnapshotInfo> Snapshot(sandbox::SnapshotRequest request,
                                                 absl::Time deadline) override {
    if (request.snapshot_id().empty())
      request.set_snapshot_id(fmt::format("snap-{}", base::RandomHex(8)));
    return Unary<sandbox::SnapshotInfo>(deadline, [&](auto* context, auto* response) {
      return stub_->Snapshot(context, request, response);
    });
  }
  absl::StatusOr<sandbox::CreateResponse> Fork(sandbox::ForkRequest request,
                                               absl::Time deadline) override {
    if (request.new_id().empty()) request.set_new_id(fmt::format("sb-{}", base::RandomHex(8)));
    return Unary<sandbox::CreateResponse>(deadline, [&](auto* context, auto* response) {
      return stub_->Fork(context, request, response);
    });
  }
  absl::StatusOr<sandbox::RestoreResponse> Restore(const std::string& sandbox_id,
                                                   absl::Time deadline) override {
    sandbox::RestoreRequest request;
    request.set_sandbox_id(sandbox_id);
    return Unary<sandbox::RestoreResponse>(deadline, [&](auto* context, auto* response) {
      return stub_->Restore(context, request, response);
    });
  }
  absl::StatusOr<sandbox::ListResponse> List(absl::Time deadline) override {
    return Unary<sandbox::ListResponse>(deadline, [&](auto* context, auto* response) {
      return stub_->List(context, sandbox::ListRequest(), response);
    });
  }
  absl::StatusOr<sandbox::ListCallsResponse> ListCalls(const std::string& sandbox_id,
                                                       absl::Time deadline) override {
    sandbox::ListCallsRequest request;
    request.set_sandbox_id(sandbox_id);
    return Unary<sandbox::ListCallsResponse>(deadline, [&](auto* context, auto* response) {
      return stub_->ListCalls(context, request, response);
    });
  }
  absl::StatusOr<sandbox::ListTiersResponse> ListTiers(absl::Time deadline) override {
    return Unary<sandbox::ListTiersResponse>(deadline, [&](auto* context, auto* response) {
      return stub_->ListTiers(context, sandbox::ListTiersRequest(), response);
    });
  }
  absl::Status Cancel(const std::string& call_id, absl::Time deadline) override {
    sandbox::SignalRequest request;
    request.set_call_id(call_id);
    request.set_cancel(true);
    return Unary<sandbox::SignalResponse>(deadline,
                                          [&](auto* context, auto* response) {
                                            return stub_->Signal(context, request, response);
                                          })
        .status();
  }

  absl::StatusOr<Finished> ExecuteToEnd(sandbox::ExecuteRequest request, absl::Time deadline,
                                        const OnOutput& on_output) override {
    if (request.call_id().empty()) request.set_call_id(fmt::format("call-{}", base::RandomHex(16)));
    Forwarder forwarder(on_output);
    Finished finished;
    auto attempt = [&](grpc::ClientContext* context) {
      return Collect(context, request, &forwarder, &finished);
    };
    RETURN_IF_ERROR(Retry(deadline, attempt));
    // What the journal dropped was perhaps still seen live: take the journal's answer, which is the
    // same for everybody who asks, now and later.
    if (finished.result.truncated() && !finished.result.replayed()) {
      sandbox::Result first = std::move(finished.result);
      RETURN_IF_ERROR(Retry(deadline, attempt));
      finished.result = std::move(first);
    }
    return finished;
  }

  void Shutdown() override {
    absl::MutexLock lock(&mutex_);
    down_ = true;
    for (grpc::ClientContext* context : open_) context->TryCancel();
  }

 private:
  // One attempt. It starts over, at byte 0: a call that its caller allowed to run again may write
  // something else the second time.
  grpc::Status Collect(grpc::ClientContext* context, const sandbox::ExecuteRequest& request,
                       Forwarder* forwarder, Finished* finished) {
    Tail out, err;
    bool ended = false;
    auto reader = stub_->Execute(context, request);
    sandbox::ExecuteEvent event;
    while (reader->Read(&event)) {
      if (event.has_output()) {
        const sandbox::Output& output = event.output();
        (output.stream() == sandbox::STREAM_STDERR ? err : out)
            .Take(output.offset(), output.data(), options_.output_bytes_max);
        forwarder->Take(output);
      } else if (event.has_result()) {
        finished->result = std::move(*event.mutable_result());
        ended = true;
      }
    }
    grpc::Status status = reader->Finish();
    if (!status.ok()) return status;
    if (!ended) {
      return grpc::Status(grpc::StatusCode::UNAVAILABLE, "the stream ended without a result");
    }
    out.Trim(options_.output_bytes_max);
    err.Trim(options_.output_bytes_max);
    finished->call_id = request.call_id();
    finished->output_cut = out.cut || err.cut;
    finished->out = std::move(out.data);
    finished->err = std::move(err.data);
    return status;
  }

  template <typename Response, typename Call>
  absl::StatusOr<Response> Unary(absl::Time deadline, Call call) {
    Response response;
    RETURN_IF_ERROR(Retry(deadline, [&](grpc::ClientContext* context) {
      response.Clear();
      return call(context, &response);
    }));
    return response;
  }

  absl::Status Retry(absl::Time deadline,
                     const std::function<grpc::Status(grpc::ClientContext*)>& attempt) {
    absl::Duration backoff = options_.backoff_min;
    absl::Time unreachable_since = absl::InfiniteFuture();
    while (true) {
      grpc::ClientContext context;
      context.set_deadline(absl::ToChronoTime(deadline));
      if (!options_.token.empty())
        context.AddMetadata("authorization", fmt::format("Bearer {}", options_.token));
      {
        absl::MutexLock lock(&mutex_);
        if (down_) return absl::CancelledError("the client was shut down");
        open_.insert(&context);
      }
      grpc::Status status = attempt(&context);
      {
        absl::MutexLock lock(&mutex_);
        open_.erase(&context);
        if (down_ || !MayTryAgain(status) || absl::Now() + backoff >= deadline) {
          return FromGrpc(status, options_.address);
        }
      }
      const absl::Time failed_at = absl::Now();
      if (Pause(backoff)) {
        unreachable_since = absl::InfiniteFuture();
      } else {
        unreachable_since = std::min(unreachable_since, failed_at);
        if (absl::Now() - unreachable_since >= options_.unreachable_max)
          return FromGrpc(status, options_.address);
      }
      backoff = std::min(2 * backoff, options_.backoff_max);
    }
  }

  // True: the daemon is connected to. Returns early when the client is shut down, or when a lost
  // connection is there again. While
  // no request is under way, only a thread in WaitForConnected drives a connection attempt on: one
  // that merely slept would wait for gRPC's own look, which comes every 5 s.
  bool Pause(absl::Duration length) ABSL_LOCKS_EXCLUDED(mutex_) {
    const absl::Time until = absl::Now() + length;
    while (channel_->GetState(/*try_to_connect=*/true) != GRPC_CHANNEL_READY) {
      const absl::Time now = absl::Now();
      if (now >= until) return false;
      if (channel_->WaitForConnected(absl::ToChronoTime(std::min(until, now + kLookForShutdown))))
        return true;
      absl::MutexLock lock(&mutex_);
      if (down_) return false;
    }
    absl::MutexLock lock(&mutex_);
    mutex_.AwaitWithTimeout(absl::Condition(&down_), until - absl::Now());
    return true;
  }

  const ClientOptions options_;
  const std::shared_ptr<grpc::Channel> channel_;
  const std::unique_ptr<sandbox::SandboxService::Stub> stub_;
  absl::Mutex mutex_;
  bool down_ ABSL_GUARDED_BY(mutex_) = false;
  std::set<grpc::ClientContext*> open_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace

absl::StatusOr<std::unique_ptr<SandboxClient>> SandboxClient::Connect(
    const ClientOptions& options) {
  if (options.address.empty())
    return absl::InvalidArgumentError("the address of sandboxd is empty");
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(kMessageBytesMax);
  arguments.SetMaxSendMessageSize(kMessageBytesMax);
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, kReconnectMinMs);
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, kReconnectMaxMs);
  arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  // Its own connection: another client's backoff must not delay this one's.
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  return std::make_unique<SandboxClientImpl>(
      options,
      grpc::CreateCustomChannel(options.address, grpc::InsecureChannelCredentials(), arguments));
}

}  // namespace reprise::sandboxd
