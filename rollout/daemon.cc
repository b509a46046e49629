#include "rollout/daemon.h"

#include <sys/stat.h>

#include <fmt/format.h>
#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <list>
#include <utility>

#include "base/fd.h"
#include "base/status_macros.h"
#include "replay/trajectory_log.h"
#include "rollout/http/http_api.h"
#include "rollout/job_table.h"
#include "rollout/retention.h"
#include "rollout/sandboxd_sandboxes.h"
#include "rollout/service.h"
#include "sandboxd/api/listen.h"

namespace reprise::rollout {
namespace {

// The newest change of a file of `directory`, wall clock, microseconds; 0 when there is none.
int64_t LastWritten(const std::string& directory) {
  int64_t newest_us = 0;
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(directory, error)) {
    struct stat about {};
    if (::stat(entry.path().c_str(), &about) != 0) continue;
    newest_us = std::max(newest_us, int64_t{about.st_mtim.tv_sec} * 1'000'000 +
                                        about.st_mtim.tv_nsec / 1000);
  }
  return newest_us;
}

constexpr std::string_view kUnixScheme = "unix:";
constexpr int kMaxRequestBytes = 4 << 20;

journal::Durability ToRecord(storage::Durability durability) {
  switch (durability) {
    case storage::Durability::kFsync:
      return journal::DURABILITY_FSYNC;
    case storage::Durability::kOs:
      return journal::DURABILITY_OS;
    case storage::Durability::kNone:
      return journal::DURABILITY_NONE;
  }
  return journal::DURABILITY_UNSPECIFIED;
}

engine::EngineOptions EngineOptionsOf(const DaemonOptions& options) {
  engine::EngineOptions engine;
  engine.threads = options.threads;
  engine.prefix_disk = options.prefix_disk;
  return engine;
}

// Members are in start order; they go in the opposite one.
class DaemonImpl final : public Daemon {
 public:
  ~DaemonImpl() override {
    // Open streams end at once: their clients ask again.
    http_.reset();
    if (server_ != nullptr) server_->Shutdown(std::chrono::system_clock::now());
    // No call may be waited for: the engine threads end with their tools.
    if (sandboxes_ != nullptr) sandboxes_->Shutdown();
  }

  absl::Status Open(const DaemonOptions& options) {
    if (options.state_dir.empty()) {
      return absl::InvalidArgumentError("no state directory: give --state");
    }
    RETURN_IF_ERROR(base::MakeDirs(options.state_dir, 0700));
    storage::StoreOptions store;
    store.path = options.state_dir + "/journal";
    store.families = replay::TrajectoryLogFamilies();
    store.durability = options.durability;
    // Before it is opened, which writes.
    const int64_t left_us = LastWritten(store.path);
    ASSIGN_OR_RETURN(store_, storage::Store::Open(store));
    ASSIGN_OR_RETURN(log_,
                     replay::TrajectoryLog::Open(store_.get(), options.state_dir + "/archive"));
    ASSIGN_OR_RETURN(sandboxes_, ConnectSandboxes(options.sandbox_address));
    jobs_ = std::make_unique<JobTable>(log_.get(), ToRecord(options.durability), sandboxes_.get(),
                                       EngineOptionsOf(options),
                                       SchedulerOptions{options.state_dir + "/kv", options.kv_bytes},
                                       options.parallel);
    RETURN_IF_ERROR(CheckRetention(options.retention));
    if (options.resume_jobs) {
      RETURN_IF_ERROR(jobs_->ResumeAll(left_us));
      RetentionOptions retention = options.retention;
      if (retention.export_dir.empty()) retention.export_dir = options.state_dir + "/exported";
      retention_ = std::make_unique<Retainer>(std::move(retention), jobs_.get(), log_.get(),
                                              sandboxes_.get());
    }
    RETURN_IF_ERROR(Listen(options.listen));
    return ListenHttp(options);
  }

  const std::vector<std::string>& addresses() const override { return addresses_; }
  const std::string& http_address() const override { return http_address_; }

 private:
  absl::Status Listen(const std::vector<std::string>& addresses) {
    if (addresses.empty()) {
      return absl::InvalidArgumentError("no address to listen on: give --listen");
    }
    service_ = MakeRolloutService(jobs_.get(), log_.get(), sandboxes_.get());
    grpc::ServerBuilder builder;
    builder.RegisterService(service_.get());
    builder.SetMaxReceiveMessageSize(kMaxRequestBytes);
    builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
    for (const std::string& address : addresses) {
      if (!address.starts_with(kUnixScheme)) {
        return absl::InvalidArgumentError(fmt::format(
            "{} is no unix socket: who may submit jobs may run commands, so rolloutd listens on "
            "unix:/PATH only",
            address));
      }
      ASSIGN_OR_RETURN(sandboxd::UnixListener listener,
                       sandboxd::UnixListener::Prepare(address.substr(kUnixScheme.size())));
      builder.AddListeningPort(fmt::format("unix:{}", listener.private_path()),
                               grpc::InsecureServerCredentials());
      sockets_.push_back(std::move(listener));
      addresses_.push_back(address);
    }
    server_ = builder.BuildAndStart();
    if (server_ == nullptr) {
      return absl::UnavailableError(
          fmt::format("cannot listen on {}: may this user make sockets there?", addresses[0]));
    }
    for (sandboxd::UnixListener& socket : sockets_) RETURN_IF_ERROR(socket.Publish());
    return absl::OkStatus();
  }

  absl::Status ListenHttp(const DaemonOptions& options) {
    if (options.http.empty()) return absl::OkStatus();
    http::HttpApiOptions http;
    http.listen = options.http;
    http.token_file = options.token_file;
    http.models = options.models;
    http.tls_cert = options.http_cert;
    http.tls_key = options.http_key;
    http.thinking = options.thinking;
    http.requests_max = options.http_requests;
    ASSIGN_OR_RETURN(http_, http::HttpApi::Start(http, jobs_.get(), log_.get()));
    http_address_ = http_->address();
    return absl::OkStatus();
  }

  std::unique_ptr<storage::Store> store_;
  std::unique_ptr<replay::TrajectoryLog> log_;
  std::unique_ptr<Sandboxes> sandboxes_;
  std::unique_ptr<JobTable> jobs_;
  std::unique_ptr<Retainer> retention_;
  std::unique_ptr<wire::RolloutService::Service> service_;
  std::list<sandboxd::UnixListener> sockets_;
  std::unique_ptr<grpc::Server> server_;
  std::vector<std::string> addresses_;
  std::string http_address_;
  std::unique_ptr<http::HttpApi> http_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Daemon>> Daemon::Start(const DaemonOptions& options) {
  auto daemon = std::make_unique<DaemonImpl>();
  RETURN_IF_ERROR(daemon->Open(options));
  return daemon;
}

}  // namespace reprise::rollout
