#include "sandboxd/function/function_tier.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <map>
#include <optional>
#include <set>
#include <thread>
#include <utility>
#include <vector>

#include <fmt/format.h>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "base/clock.h"
#include "base/crc32c.h"
#include "base/fd.h"
#include "base/format.h"
#include "base/log.h"
#include "base/status_macros.h"
#include "sandboxd/function/cgroup.h"
#include "sandboxd/function/control.h"
#include "sandboxd/function/worker_supply.h"
#include "sandboxd/limits.h"
#include "sandboxd/link/remote_call.h"
#include "sandboxd/network/gates.h"

namespace reprise::sandboxd {
namespace {

constexpr char kSandboxPlacement[] = "function";
constexpr int64_t kGateWaitUs = 10'000'000;
constexpr auto kGatePoll = std::chrono::milliseconds(5);
constexpr char kNoState[] =
    "a function sandbox keeps nothing between its calls; use the container tier";

sandbox::Limits DefaultLimits() {
  sandbox::Limits limits;
  limits.set_timeout_ms(30'000);
  limits.set_memory_bytes(512ull << 20);
  limits.set_pids(64);
  limits.set_cpu_ms(30'000);
  limits.set_file_bytes(64ull << 20);
  limits.set_disk_bytes(64ull << 20);
  limits.set_open_files(256);
  limits.set_output_bytes_kept(kOutputKeptDefault);
  limits.set_output_bytes_max(kOutputBytesDefault);
  return limits;
}

agent::Start StartOf(const sandbox::ExecuteRequest& request, const sandbox::SandboxSpec& spec) {
  agent::Start start = ToStart(request);
  start.env.insert(start.env.begin(),
                   {"HOME=/work", "USER=sandbox", "LANG=C.UTF-8", "TMPDIR=/tmp"});
  if (start.working_dir.empty()) start.working_dir = kWorkingDirDefault;
  const sandbox::Limits& limits = request.limits();
  start.memory_bytes = limits.memory_bytes();
  start.pids = limits.pids();
  start.disk_bytes = limits.disk_bytes();
  for (const sandbox::Bind& bind : spec.binds()) {
    start.binds.insert(start.binds.end(),
                       {bind.host_path(), bind.sandbox_path(), bind.writable() ? "rw" : "ro"});
  }
  return start;
}

std::string FilesOf(const sandbox::ExecuteRequest& request) {
  if (request.files().empty()) return "";
  agent::InputFiles files;
  for (const sandbox::InputFile& file : request.files()) {
    files.paths.push_back(file.path());
    files.contents.push_back(file.content());
    files.modes.push_back(fmt::format("{:o}", file.mode() == 0 ? 0644 : file.mode()));
  }
  agent::Encoder encoder;
  files.Fields(encoder);
  return encoder.Take();
}

class FunctionTier final : public Substrate {
 public:
  FunctionTier(FunctionTierOptions options, std::string cgroup,
               std::unique_ptr<RemoteCallLoop> loop)
      : options_(std::move(options)),
        cgroup_(std::move(cgroup)),
        gates_(options_.helper_dir, options_.resolver),
        loop_(std::move(loop)) {
    // Whatever has a directory now is of an earlier daemon.
    earlier_ = Workers();
    supply_ = std::make_unique<WorkerSupply>(
        WorkerSupplyOptions{options_.helper_dir + "/reprise-supervisor", options_.state_dir,
                            cgroup_, static_cast<size_t>(std::max(options_.pool, 0)),
                            static_cast<size_t>(std::max(options_.max, 1))});
  }

  sandbox::Tier tier() const override { return sandbox::TIER_FUNCTION; }
  sandbox::Limits default_limits() const override { return DefaultLimits(); }
  sandbox::TierInfo Describe() override {
    sandbox::TierInfo info;
    info.set_tier(tier());
    std::string note;
    const absl::Status usable = supply_->usable(&note);
    info.set_usable(usable.ok());
    info.set_reason(usable.ok() ? note : std::string(usable.message()));
    for (const char* verb : {"create", "execute", "stdin", "pty", "signal", "stop"})
      (*info.mutable_verbs())[verb] = "yes";
    for (const char* verb : {"files", "watch", "pause", "resume", "snapshot", "fork"})
      (*info.mutable_verbs())[verb] = kNoState;
    (*info.mutable_verbs())["images"] = "a function sandbox has the host's programs, read-only";
    const absl::Status network = gates_.Usable();
    (*info.mutable_verbs())["network"] = network.ok() ? "yes" : std::string(network.message());
    *info.mutable_default_limits() = DefaultLimits();
    return info;
  }

  bool KeepsState() const override { return false; }
  void Shutdown() override { supply_->Stop(); }

  absl::StatusOr<std::string> CreateSandbox(const std::string& id, const sandbox::SandboxSpec& spec,
                                            std::vector<sandbox::StepTime>* steps) override {
    auto refuse = [](const char* field) {
      return absl::InvalidArgumentError(
          fmt::format("spec.{}: the function tier has none; leave it empty", field));
    };
    if (!spec.image().empty()) return refuse("image");
    if (!spec.runtime().empty()) return refuse("runtime");
    if (!spec.user().empty()) return refuse("user");
    std::string note;
    const absl::Status usable = supply_->usable(&note);
    // Not UNAVAILABLE: clients would wait for a tier that only another start of the daemon brings.
    if (!usable.ok()) {
      return absl::FailedPreconditionError(
          fmt::format("the function tier is not usable here: {}", std::string(usable.message())));
    }
    return std::string(kSandboxPlacement);
  }
  absl::Status RecoverSandbox(const SandboxRef& sandbox) override { return absl::OkStatus(); }
  absl::Status StopSandbox(const SandboxRef& sandbox) override {
    absl::MutexLock lock(&networks_mutex_);
    networks_.erase(sandbox.id);
    return absl::OkStatus();
  }
  absl::Status PauseSandbox(const SandboxRef& sandbox) override {
    return absl::UnimplementedError(kNoState);
  }
  absl::Status ResumeSandbox(const SandboxRef& sandbox) override {
    return absl::UnimplementedError(kNoState);
  }

  absl::StatusOr<std::unique_ptr<FileWatch>> Watch(const SandboxRef&, const std::string&,
                                                   bool) override {
    return absl::UnimplementedError(kNoState);
  }

  absl::StatusOr<std::string> Reserve(const SandboxRef& sandbox) override {
    return supply_->Take();
  }
  void Unreserve(const std::string& placement) override { supply_->GiveBack(placement); }

  absl::StatusOr<std::unique_ptr<RunningCall>> Start(const SandboxRef& sandbox,
                                                     const std::string& placement,
                                                     const sandbox::ExecuteRequest& request,
                                                     std::unique_ptr<CallSink> sink) override {
    agent::Start start = StartOf(request, *sandbox.spec);
    if (sandbox.spec->has_network()) {
      absl::MutexLock lock(&networks_mutex_);
      Networked& networked = networks_[sandbox.id];
      // A policy that was set since the call took its spec is the newer one.
      if (!networked.newest.has_value()) networked.newest = sandbox.spec->network();
      networked.workers.insert(placement);
      start.network = network::PolicyText(*networked.newest);
      start.resolver = options_.resolver;
    }
    auto running = loop_->Start({RunDir(placement)}, std::move(start), request.stdin(),
                                FilesOf(request), std::move(sink));
    if (!running.ok() && sandbox.spec->has_network()) {
      // The worker may serve another sandbox next.
      absl::MutexLock lock(&networks_mutex_);
      networks_[sandbox.id].workers.erase(placement);
    }
    return running;
  }

  // The calls that run now have gates of their own; one that is just being started has its gate in
  // a moment.
  absl::Status SetNetwork(const SandboxRef& sandbox) override {
    for (const std::string& worker : WorkersOf(sandbox, /*newest=*/true)) {
      const int64_t deadline = base::MonotonicMicros() + kGateWaitUs;
      while (true) {
        const absl::Status set = gates_.Set(RunDir(worker), sandbox.spec->network());
        if (set.ok() || ::access(RunDir(worker).c_str(), F_OK) != 0) break;
        if (!absl::IsNotFound(set) && !absl::IsUnavailable(set)) return set;
        // No gate answers: its call has ended, or it is not there yet.
        if (absl::IsUnavailable(set)) break;
        if (base::MonotonicMicros() > deadline) {
          return absl::UnavailableError(fmt::format(
              "a call of sandbox {} does not take its network: send it again", sandbox.id));
        }
        std::this_thread::sleep_for(kGatePoll);
      }
    }
    return absl::OkStatus();
  }

  absl::StatusOr<sandbox::NetworkCounters> CountNetwork(const SandboxRef& sandbox) override {
    sandbox::NetworkCounters sum;
    for (const std::string& worker : WorkersOf(sandbox, /*newest=*/false)) {
      const absl::StatusOr<sandbox::NetworkCounters> count = gates_.Count(RunDir(worker));
      if (count.ok()) network::Add(*count, &sum);
    }
    return sum;
  }

  // A worker makes its mark before the command can run, and only one can make it: who makes it here
  // knows that the call was not started and will not be. A worker without a call goes with its
  // daemon, and so does its directory.
  Attachment Reattach(const SandboxRef& sandbox, const std::string& placement,
                      const std::string& call_id, OutputPosition from,
                      std::unique_ptr<CallSink>& sink) override {
    const std::string mark = fmt::format("{}/{}", RunDir(placement), function::kStartedFile);
    const base::UniqueFd fd(::open(mark.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600));
    if (fd.valid() || errno == ENOENT) return {AttachState::kNeverStarted, "", nullptr};
    if (errno != EEXIST) {
      return {AttachState::kLost, std::string(base::ErrnoStatus(errno, mark).message()), nullptr};
    }
    Attachment attachment = loop_->Attach({RunDir(placement)}, call_id, from, sink);
    if (attachment.state == AttachState::kNeverStarted) {
      return {AttachState::kLost, "the worker was started with another call", nullptr};
    }
    if (attachment.state == AttachState::kAttached) {
      earlier_.erase(placement);
      const std::string gate = fmt::format("{}/{}", RunDir(placement), network::kGateSocket);
      absl::MutexLock lock(&networks_mutex_);
      if (::access(gate.c_str(), F_OK) == 0) networks_[sandbox.id].workers.insert(placement);
    }
    return attachment;
  }

  void RecoveryDone() override {
    const function::CgroupTree cgroups = function::CgroupTree::Make(cgroup_);
    for (const std::string& id : earlier_) {
      // A worker that lives kills its call and goes by itself; of a dead one only the traces are
      // left.
      const absl::Status pruned =
          AgentRequest(RunDir(id), agent::RawFrame(agent::FrameType::kPrune, ""));
      if (pruned.ok()) continue;
      cgroups.RemoveGroup(id);
      for (const char* name : {function::kStartedFile, agent::kSocketName, network::kGateSocket}) {
        ::unlink(fmt::format("{}/{}", RunDir(id), name).c_str());
      }
      if (::rmdir(RunDir(id).c_str()) == 0)
        base::LogInfo(fmt::format("removed the traces of worker {}", id));
    }
    earlier_.clear();
    cgroups.RemoveBase();
  }

 private:
  // Of one sandbox.
  struct Networked {
    std::optional<sandbox::NetworkPolicy> newest;
    std::set<std::string> workers;  // with calls that run, or ran
  };

  // Those that are still there. `newest`: the policy in `sandbox` becomes that of later calls.
  std::set<std::string> WorkersOf(const SandboxRef& sandbox, bool newest) {
    absl::MutexLock lock(&networks_mutex_);
    Networked& networked = networks_[sandbox.id];
    if (newest) networked.newest = sandbox.spec->network();
    std::erase_if(networked.workers, [&](const std::string& worker) {
      return ::access(RunDir(worker).c_str(), F_OK) != 0;
    });
    return networked.workers;
  }

  std::string RunDir(const std::string& id) const {
    return fmt::format("{}/{}/{}", options_.state_dir, function::kWorkersDir, id);
  }
  std::set<std::string> Workers() const {
    std::set<std::string> ids;
    DIR* dir = ::opendir(fmt::format("{}/{}", options_.state_dir, function::kWorkersDir).c_str());
    if (dir == nullptr) return ids;
    while (const dirent* entry = ::readdir(dir)) {
      if (entry->d_name[0] != '.') ids.insert(entry->d_name);
    }
    ::closedir(dir);
    return ids;
  }

  const FunctionTierOptions options_;
  const std::string cgroup_;
  network::Gates gates_;
  std::unique_ptr<RemoteCallLoop> loop_;
  std::unique_ptr<WorkerSupply> supply_;
  std::set<std::string> earlier_;  // until RecoveryDone; recovery is one thread
  absl::Mutex networks_mutex_;
  std::map<std::string, Networked> networks_ ABSL_GUARDED_BY(networks_mutex_);  // by sandbox id
};

}  // namespace

absl::StatusOr<std::unique_ptr<Substrate>> MakeFunctionTier(const FunctionTierOptions& options) {
  RETURN_IF_ERROR(
      base::MakeDirs(fmt::format("{}/{}", options.state_dir, function::kWorkersDir), 0700));
  RETURN_IF_ERROR(
      base::MakeDirs(fmt::format("{}/{}", options.state_dir, function::kRootDir), 0755));
  ASSIGN_OR_RETURN(auto loop, RemoteCallLoop::Make());
  // The same for every daemon on this state directory, so that leftovers are found.
  const std::string cgroup =
      fmt::format("{}{:08x}", function::kCgroupPrefix, base::Crc32c(options.state_dir));
  return std::make_unique<FunctionTier>(options, cgroup, std::move(loop));
}

}  // namespace reprise::sandboxd
