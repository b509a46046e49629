#include "sandboxd/api/server.h"

#include <chrono>
#include <list>
#include <utility>

#include <fmt/format.h>
#include <grpcpp/grpcpp.h>

#include "base/log.h"
#include "base/status_macros.h"
#include "sandboxd/api/auth.h"
#include "sandboxd/api/listen.h"
#include "sandboxd/api/service.h"
#include "sandboxd/limits.h"

namespace reprise::sandboxd {
namespace {

constexpr std::string_view kUnixScheme = "unix:";
constexpr std::chrono::seconds kShutdownGrace{2};  // for verbs that run when the server ends
constexpr int kStreamsPerConnectionMax = 16384;    // waiting calls of one client
constexpr int kMetadataBytesMax = 16 << 10;
constexpr int kKeepaliveMs = 30000;  // finds clients that vanished without a word
constexpr int kKeepaliveTimeoutMs = 20000;

class ApiServerImpl final : public ApiServer {
 public:
  ApiServerImpl(const ServerOptions& options, CallManager* calls, SandboxManager* sandboxes,
                WatchManager* watches)
      : verbs_(options.verb_threads, options.verbs_max),
        calls_(calls),
        sandboxes_(sandboxes),
        watches_(watches) {}
  ~ApiServerImpl() override { Shutdown(); }

  absl::Status Listen(const ServerOptions& options) {
    if (options.listen.empty())
      return absl::InvalidArgumentError("no address to listen on: give --listen");
    if (!options.token_file.empty()) {
      ASSIGN_OR_RETURN(authorizer_, Authorizer::FromFile(options.token_file));
    }
    service_ = MakeSandboxService(&authorizer_, &verbs_, calls_, sandboxes_, watches_);
    grpc::ServerBuilder builder;
    builder.RegisterService(service_.get());
    builder.SetMaxReceiveMessageSize(static_cast<int>(kRequestBytesMax));
    builder.SetMaxSendMessageSize(-1);  // lists have no other bound than the journal
    builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
    builder.AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS, kStreamsPerConnectionMax);
    builder.AddChannelArgument(GRPC_ARG_MAX_METADATA_SIZE, kMetadataBytesMax);
    builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, kKeepaliveMs);
    builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, kKeepaliveTimeoutMs);
    std::list<int> ports;  // gRPC keeps their addresses
    for (const std::string& address : options.listen) {
      std::string bind = address;
      if (address.rfind(kUnixScheme, 0) == 0) {
        ASSIGN_OR_RETURN(UnixListener listener,
                         UnixListener::Prepare(address.substr(kUnixScheme.size())));
        bind = fmt::format("unix:{}", listener.private_path());
        sockets_.push_back(std::move(listener));
      } else if (!authorizer_.has_token()) {
        return absl::InvalidArgumentError(fmt::format(
            "{} is a TCP address: give --token-file, or listen on a unix socket", address));
      }
      builder.AddListeningPort(bind, grpc::InsecureServerCredentials(), &ports.emplace_back(0));
    }
    server_ = builder.BuildAndStart();
    auto port = ports.begin();
    for (const std::string& address : options.listen) {
      if (server_ == nullptr || *port == 0) {
        return absl::UnavailableError(fmt::format(
            "cannot listen on {}: is it in use, or may this user not bind it?", address));
      }
      addresses_.push_back(
          address.rfind(kUnixScheme, 0) == 0
              ? address
              : fmt::format("{}:{}", address.substr(0, address.rfind(':')), *port));
      ++port;
    }
    for (UnixListener& socket : sockets_) RETURN_IF_ERROR(socket.Publish());
    return absl::OkStatus();
  }

  const std::vector<std::string>& addresses() const override { return addresses_; }

  void Shutdown() override {
    if (server_ == nullptr) return;
    server_->Shutdown(std::chrono::system_clock::now() + kShutdownGrace);
    server_->Wait();
    verbs_.Close();
    server_ = nullptr;
  }

 private:
  Authorizer authorizer_;
  WorkerPool verbs_;
  CallManager* const calls_;
  SandboxManager* const sandboxes_;
  WatchManager* const watches_;
  std::unique_ptr<grpc::Service> service_;
  std::list<UnixListener> sockets_;
  std::unique_ptr<grpc::Server> server_;
  std::vector<std::string> addresses_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<ApiServer>> ApiServer::Start(const ServerOptions& options,
                                                            CallManager* calls,
                                                            SandboxManager* sandboxes,
                                                            WatchManager* watches) {
  auto server = std::make_unique<ApiServerImpl>(options, calls, sandboxes, watches);
  RETURN_IF_ERROR(server->Listen(options));
  return server;
}

}  // namespace reprise::sandboxd
