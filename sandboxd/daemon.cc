#include "sandboxd/daemon.h"

#include <utility>

#include <fmt/format.h>

#include "base/fd.h"
#include "base/format.h"
#include "base/log.h"
#include "base/program_dir.h"
#include "base/status_macros.h"
#include "replay/call_log.h"
#include "sandboxd/api/http/http_api.h"
#include "sandboxd/api/server.h"
#include "sandboxd/call_manager.h"
#include "sandboxd/sandbox_manager.h"
#include "sandboxd/state_lock.h"
#include "sandboxd/tiers.h"

namespace reprise::sandboxd {
namespace {

constexpr char kBootIdPath[] = "/proc/sys/kernel/random/boot_id";
constexpr size_t kBootIdBytesMax = 64;

absl::StatusOr<std::string> BootId() {
  ASSIGN_OR_RETURN(std::string id, base::ReadFile(kBootIdPath, kBootIdBytesMax));
  while (!id.empty() && id.back() == '\n') id.pop_back();
  return id;
}

// Members are in start order; they go in the opposite one.
class DaemonImpl final : public Daemon {
 public:
  ~DaemonImpl() override {
    if (calls_ != nullptr) calls_->Detach();
    if (watches_ != nullptr) watches_->Shutdown();
    if (http_ != nullptr) http_->Shutdown();
    if (server_ != nullptr) server_->Shutdown();
    for (const auto& substrate : substrates_)
      substrate->Shutdown();  // wakes who waits for a worker
    if (calls_ != nullptr) calls_->Shutdown();
  }

  absl::Status Open(DaemonOptions options) {
    if (options.state_dir.empty())
      return absl::InvalidArgumentError("no state directory: give --state");
    if (options.helper_dir.empty()) {
      ASSIGN_OR_RETURN(options.helper_dir, base::ProgramDir());
    }
    RETURN_IF_ERROR(base::MakeDirs(options.state_dir, 0700));
    ASSIGN_OR_RETURN(StateLock lock, StateLock::Take(options.state_dir));
    lock_ = std::make_unique<StateLock>(std::move(lock));
    ASSIGN_OR_RETURN(std::string boot_id, BootId());

    // First, while this process has few threads: tiers may fork their zygotes.
    ASSIGN_OR_RETURN(substrates_, MakeTiers(options));
    storage::StoreOptions store;
    store.path = fmt::format("{}/journal", options.state_dir);
    store.families = replay::CallLogFamilies();
    store.durability = options.durability;
    ASSIGN_OR_RETURN(store_, storage::Store::Open(store));
    ASSIGN_OR_RETURN(log_, replay::CallLog::Open(store_.get()));

    auto health = [store = store_.get()] { return store->health(); };
    SandboxManager::Tiers tiers;
    for (const auto& substrate : substrates_) tiers[substrate->tier()] = substrate.get();
    SandboxOptions sandbox_options;
    sandbox_options.bind_roots = options.bind_roots;
    sandbox_options.sandboxes_max = options.sandboxes_max;
    sandbox_options.memory_bytes_max = options.memory_bytes_max;
    sandbox_options.boot_id = boot_id;
    sandbox_options.journal_health = health;
    sandboxes_ =
        std::make_unique<SandboxManager>(std::move(sandbox_options), log_.get(), std::move(tiers));
    CallOptions call_options;
    call_options.boot_id = boot_id;
    call_options.journal_health = health;
    calls_ = std::make_unique<CallManager>(std::move(call_options), log_.get(), sandboxes_.get());
    ASSIGN_OR_RETURN(watches_, WatchManager::Make(sandboxes_.get()));
    RETURN_IF_ERROR(sandboxes_->Recover());
    RETURN_IF_ERROR(calls_->Recover());
    for (const auto& substrate : substrates_) substrate->RecoveryDone();

    ServerOptions server;
    server.listen = options.listen;
    server.token_file = options.token_file;
    ASSIGN_OR_RETURN(server_,
                     ApiServer::Start(server, calls_.get(), sandboxes_.get(), watches_.get()));
    for (const std::string& address : server_->addresses())
      base::LogInfo(fmt::format("sandboxd listens on {}", address));
    return OpenHttp(options);
  }

  const std::vector<std::string>& addresses() const override { return server_->addresses(); }
  const std::string& http_address() const override { return http_address_; }

 private:
  absl::Status OpenHttp(const DaemonOptions& options) {
    if (options.http.empty()) return absl::OkStatus();
    http::HttpApiOptions http;
    http.listen = options.http;
    http.token_file = options.token_file;
    http.state_dir = fmt::format("{}/http", options.state_dir);
    http.durability = options.durability;
    http.internet = options.e2b_internet;
    http.journal = store_.get();
    http.tls_cert = options.http_cert;
    http.tls_key = options.http_key;
    ASSIGN_OR_RETURN(http_,
                     http::HttpApi::Start(http, calls_.get(), sandboxes_.get(), watches_.get()));
    http_address_ = http_->address();
    base::LogInfo(fmt::format("sandboxd listens on {}", http_address_));
    return absl::OkStatus();
  }

  std::unique_ptr<StateLock> lock_;
  std::unique_ptr<storage::Store> store_;
  std::unique_ptr<replay::CallLog> log_;
  std::vector<std::unique_ptr<Substrate>> substrates_;
  std::unique_ptr<SandboxManager> sandboxes_;
  std::unique_ptr<CallManager> calls_;
  std::unique_ptr<WatchManager> watches_;
  std::unique_ptr<ApiServer> server_;
  std::unique_ptr<http::HttpApi> http_;
  std::string http_address_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Daemon>> Daemon::Start(const DaemonOptions& options) {
  auto daemon = std::make_unique<DaemonImpl>();
  RETURN_IF_ERROR(daemon->Open(options));
  return daemon;
}

}  // namespace reprise::sandboxd
