#include "sandboxd/container/container_tier.h"

#include <fmt/format.h>
#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <set>

#include "absl/synchronization/mutex.h"
#include "base/clock.h"
#include "base/fd.h"
#include "base/format.h"
#include "base/ids.h"
#include "base/log.h"
#include "base/status_macros.h"
#include "sandboxd/container/container_life.h"
#include "sandboxd/container/containerd_client.h"
#include "sandboxd/container/idmap.h"
#include "sandboxd/container/image_store.h"
#include "sandboxd/container/oom_watch.h"
#include "sandboxd/limits.h"
#include "sandboxd/link/agent_tier.h"

namespace reprise::sandboxd {
namespace {

constexpr char kContainerdNamespace[] = "reprise";
constexpr char kAgentName[] = "reprise-agent";
constexpr int64_t kDescribeFreshUs = 1'000'000;
constexpr int kPauseTries = 5;

// What a limit of 0 means.
sandbox::Limits DefaultLimits() {
  sandbox::Limits limits;
  limits.set_timeout_ms(10 * 60 * 1000);
  limits.set_memory_bytes(2ull << 30);
  limits.set_pids(1024);
  limits.set_open_files(4096);
  limits.set_output_bytes_kept(kOutputKeptDefault);
  limits.set_output_bytes_max(kOutputBytesDefault);
  return limits;
}

// The limits that the container's cgroup enforces.
sandbox::Limits SandboxLimits(const sandbox::SandboxSpec& spec) {
  sandbox::Limits limits = DefaultLimits();
  if (spec.limits().memory_bytes() != 0) limits.set_memory_bytes(spec.limits().memory_bytes());
  if (spec.limits().pids() != 0) limits.set_pids(spec.limits().pids());
  limits.set_best_effort(spec.limits().best_effort());
  return limits;
}

absl::Status NeedsContainerd(const absl::Status& status) {
  return absl::IsDeadlineExceeded(status) ? absl::UnavailableError(std::string(status.message()))
                                          : status;
}

// A command that was killed while the OOM killer ran in its container was killed for its memory.
// `before`: how often it had run when the call began.
void TellMemory(const std::string& container, uint64_t before, sandbox::Result* result) {
  constexpr int kExitOfKilledChild = 128 + SIGKILL;  // as shells report it
  const bool killed =
      (result->outcome() == sandbox::OUTCOME_SIGNALED && result->signal() == SIGKILL) ||
      (result->outcome() == sandbox::OUTCOME_EXITED && result->exit_code() == kExitOfKilledChild);
  if (!killed || OomKills(container).value_or(before) <= before) return;
  result->set_outcome(sandbox::OUTCOME_MEMORY_EXCEEDED);
  result->set_message("the sandbox ran out of memory (limits.memory_bytes)");
}

class ContainerTier final : public AgentTier {
 public:
  ContainerTier(ContainerTierOptions options, std::string owner, absl::Status idmapped,
                std::unique_ptr<RemoteCallLoop> loop)
      : AgentTier("container", std::move(loop)),
        options_(std::move(options)),
        agent_path_(options_.helper_dir + "/" + kAgentName),
        idmapped_(std::move(idmapped)),
        client_(options_.containerd_address, kContainerdNamespace),
        images_(&client_, Dir() + "/import"),
        gates_(options_.helper_dir, options_.resolver),
        life_({Dir(), agent_path_, std::move(owner), idmapped_.ok(), &gates_}, &client_, &images_) {
  }

  ImageStore* images() { return &images_; }

  sandbox::Tier tier() const override { return sandbox::TIER_CONTAINER; }
  sandbox::Limits default_limits() const override { return DefaultLimits(); }
  sandbox::TierInfo Describe() override {
    absl::MutexLock lock(&describe_mutex_);
    const int64_t now = base::MonotonicMicros();
    if (described_us_ == 0 || now - described_us_ > kDescribeFreshUs) {
      description_ = DescribeNow();
      described_us_ = now;
    }
    return description_;
  }

  absl::StatusOr<std::string> CreateSandbox(const std::string& id, const sandbox::SandboxSpec& spec,
                                            std::vector<sandbox::StepTime>* steps) override {
    RETURN_IF_ERROR(ContainerLife::CheckSpec(spec));
    RETURN_IF_ERROR(Usable());
    CleanUp();
    absl::ReaderMutexLock making(&making_mutex_);
    ASSIGN_OR_RETURN(std::string container, life_.Create(id, spec, SandboxLimits(spec), steps));
    Know(container);
    return container;
  }

  absl::Status RecoverSandbox(const SandboxRef& sandbox) override {
    RETURN_IF_ERROR(base::CheckId(sandbox.placement, "placement"));
    const absl::Status found = NeedsContainerd(Find(sandbox.placement));
    if (found.ok() || absl::IsUnavailable(found)) Know(sandbox.placement);
    if (found.ok() && sandbox.spec->has_network()) return SetNetwork(sandbox);
    return found;
  }

  absl::Status SetNetwork(const SandboxRef& sandbox) override {
    RETURN_IF_ERROR(ContainerLife::CheckSpec(*sandbox.spec));
    return NeedsContainerd(life_.SetNetwork(sandbox.placement, sandbox.spec->network()));
  }
  absl::StatusOr<sandbox::NetworkCounters> CountNetwork(const SandboxRef& sandbox) override {
    return life_.CountNetwork(sandbox.placement);
  }

  absl::StatusOr<std::unique_ptr<RunningCall>> Start(const SandboxRef& sandbox,
                                                     const std::string& placement,
                                                     const sandbox::ExecuteRequest& request,
                                                     std::unique_ptr<CallSink> sink) override {
    if (sandbox.spec->has_network() && placement == sandbox.placement)
      RETURN_IF_ERROR(NeedsContainerd(life_.KeepNetwork(placement, sandbox.spec->network())));
    return AgentTier::Start(sandbox, placement, request, std::move(sink));
  }

  absl::Status StopSandbox(const SandboxRef& sandbox) override {
    RETURN_IF_ERROR(life_.Remove(sandbox.placement));
    Forget(sandbox.placement);
    return absl::OkStatus();
  }

  absl::Status PauseSandbox(const SandboxRef& sandbox) override {
    ASSIGN_OR_RETURN(const TaskInfo task, Task(sandbox));
    if (task.state == TaskState::kPaused) return absl::OkStatus();
    // On a busy host runc gives up when the freezer of cgroup v1 has not caught every process in a
    // few rounds, and leaves the container running.
    absl::Status paused = client_.PauseTask(sandbox.placement);
    for (int tries = 1; tries < kPauseTries && !paused.ok(); ++tries) {
      ASSIGN_OR_RETURN(const TaskInfo now, Task(sandbox));
      if (now.state != TaskState::kRunning) break;
      paused = client_.PauseTask(sandbox.placement);
    }
    return paused;
  }
  absl::Status ResumeSandbox(const SandboxRef& sandbox) override {
    ASSIGN_OR_RETURN(const TaskInfo task, Task(sandbox));
    return task.state == TaskState::kPaused ? client_.ResumeTask(sandbox.placement)
                                            : absl::OkStatus();
  }

  absl::StatusOr<SnapshotImage> SnapshotSandbox(const SandboxRef& sandbox,
                                                const std::string& name) override {
    RETURN_IF_ERROR(Usable());
    ASSIGN_OR_RETURN(const TaskInfo task, Task(sandbox));
    if (task.state != TaskState::kPaused) RETURN_IF_ERROR(PauseSandbox(sandbox));
    absl::StatusOr<SnapshotImage> snapshot = life_.Snapshot(sandbox.placement, name);
    if (task.state != TaskState::kPaused) RETURN_IF_ERROR(ResumeSandbox(sandbox));
    return snapshot;
  }

  void RecoveryDone() override {
    {
      absl::MutexLock lock(&clean_mutex_);
      clean_ = false;
    }
    PruneCalls();
    CleanUp();
  }

  absl::StatusOr<sandbox::Image> ImportImage(const std::string& name,
                                             const std::string& source) override {
    RETURN_IF_ERROR(Usable());
    RETURN_IF_ERROR(client_.EnsureNamespace());
    return images_.Import(name, source);
  }
  absl::StatusOr<std::vector<sandbox::Image>> ListImages() override {
    RETURN_IF_ERROR(Usable());
    return images_.List();
  }
  absl::Status RemoveImage(const std::string& name) override {
    RETURN_IF_ERROR(Usable());
    return images_.Remove(name);
  }

 private:
  std::string Dir() const { return options_.state_dir + "/container"; }

  std::string RunDir(const std::string& container) const override {
    return life_.RunDir(container);
  }
  CallOwner Owner(const std::string& container) const override {
    return {RunDir(container), [container](uint64_t tag, sandbox::Result* result) {
              TellMemory(container, tag, result);
            }};
  }
  uint64_t CallTag(const std::string& container) const override {
    return OomKills(container).value_or(0);
  }
  // Containers live on without containerd, and run as far as anyone knows then.
  absl::StatusOr<bool> Paused(const std::string& container) override {
    const absl::StatusOr<TaskInfo> task = client_.GetTask(container);
    return task.ok() && task->state == TaskState::kPaused;
  }
  // Memory and processes are counted for the whole container; a call cannot have less of them for
  // itself.
  absl::Status CheckCallLimits(const sandbox::Limits& call,
                               const sandbox::SandboxSpec& spec) const override {
    const sandbox::Limits whole = SandboxLimits(spec);
    RETURN_IF_ERROR(CheckSandboxLimit("container", "memory_bytes", call.memory_bytes(),
                                      whole.memory_bytes(), 0));
    RETURN_IF_ERROR(CheckSandboxLimit("container", "pids", call.pids(), whole.pids(), 0));
    if (call.disk_bytes() != 0)
      return absl::UnimplementedError("the container tier cannot limit disk_bytes: leave it 0");
    return absl::OkStatus();
  }

  absl::StatusOr<TaskInfo> Task(const SandboxRef& sandbox) {
    ASSIGN_OR_RETURN(TaskInfo task, client_.GetTask(sandbox.placement));
    if (task.state == TaskState::kNone || task.state == TaskState::kStopped) {
      return absl::NotFoundError(
          fmt::format("the container {} of sandbox {} has ended", sandbox.placement, sandbox.id));
    }
    return task;
  }

  // OK: it is there. UNAVAILABLE: it may be. Anything else: it is gone.
  absl::Status Find(const std::string& container) {
    const absl::StatusOr<TaskInfo> task = client_.GetTask(container);
    if (!task.ok()) {
      // Containers live on without containerd; only its verbs are missing then.
      return Ping(container).ok() ? absl::OkStatus() : task.status();
    }
    switch (task->state) {
      case TaskState::kPaused:
        return absl::OkStatus();
      case TaskState::kRunning: {
        const absl::Status answer = Ping(container);
        return answer.ok() ? answer : absl::UnavailableError(std::string(answer.message()));
      }
      default:
        return absl::NotFoundError(fmt::format("its container {} has ended", container));
    }
  }

  // Removes what the last daemon left, once containerd can be reached: with RecoveryDone or the
  // first sandbox made later.
  void CleanUp() {
    if (!Usable().ok()) return;
    absl::MutexLock making(&making_mutex_);
    {
      absl::MutexLock lock(&clean_mutex_);
      if (clean_) return;
    }
    const absl::Status status = life_.RemoveOthers(Known());
    if (!status.ok())
      base::LogWarn(fmt::format("container tier: not cleaned up yet: {}", status.message()));
    absl::MutexLock lock(&clean_mutex_);
    clean_ = status.ok();
  }

  absl::Status Usable() {
    const sandbox::TierInfo info = Describe();
    return info.usable() ? absl::OkStatus() : absl::UnavailableError(info.reason());
  }

  sandbox::TierInfo DescribeNow() {
    sandbox::TierInfo info;
    info.set_tier(tier());
    *info.mutable_default_limits() = DefaultLimits();
    for (const char* const verb : {"create", "execute", "stdin", "pty", "signal", "stop", "files",
                                   "watch", "pause", "resume", "images", "snapshot", "fork"}) {
      (*info.mutable_verbs())[verb] = "yes";
    }
    const absl::Status network = gates_.Usable();
    (*info.mutable_verbs())["network"] = network.ok() ? "yes" : std::string(network.message());
    absl::StatusOr<std::string> version = Probe();
    info.set_usable(version.ok());
    if (!version.ok()) {
      info.set_reason(std::string(version.status().message()));
      return info;
    }
    info.set_reason(fmt::format("containerd {}, {}", *version,
                                idmapped_.ok()
                                    ? "user namespaces over id-mapped layers"
                                    : fmt::format("no user namespaces: {}", idmapped_.message())));
    return info;
  }

  // containerd's version, or what is missing and what to do.
  absl::StatusOr<std::string> Probe() {
    if (options_.containerd_address.empty()) {
      return absl::UnavailableError(
          "the container tier is turned off: give the daemon a containerd address");
    }
    if (geteuid() != 0)
      return absl::UnavailableError("the container tier needs root: run sandboxd as root");
    if (access(agent_path_.c_str(), X_OK) != 0) {
      return absl::UnavailableError(
          fmt::format("{} is missing: build it, or name its directory", agent_path_));
    }
    struct stat info;
    const bool there =
        stat(options_.containerd_address.c_str(), &info) == 0 && S_ISSOCK(info.st_mode);
    absl::StatusOr<std::string> version =
        there ? client_.Version() : absl::UnavailableError("the socket does not exist");
    if (version.ok()) return version;
    return absl::UnavailableError(fmt::format(
        "containerd does not answer at {} ({}); start containerd: 'systemctl start "
        "containerd', or 'containerd &' as root where no systemd runs; install it where "
        "it is missing: 'apt-get install containerd runc'",
        options_.containerd_address, version.status().message()));
  }

  const ContainerTierOptions options_;
  const std::string agent_path_;
  const absl::Status idmapped_;  // not OK: why there are no user namespaces
  ContainerdClient client_;
  ImageStore images_;
  network::Gates gates_;
  ContainerLife life_;

  absl::Mutex describe_mutex_;
  sandbox::TierInfo description_ ABSL_GUARDED_BY(describe_mutex_);
  int64_t described_us_ ABSL_GUARDED_BY(describe_mutex_) = 0;

  // Held for reading while a container is made that is not known yet, for writing while others are
  // removed.
  absl::Mutex making_mutex_ ABSL_ACQUIRED_BEFORE(clean_mutex_);
  absl::Mutex clean_mutex_;
  bool clean_ ABSL_GUARDED_BY(clean_mutex_) = true;
};

// A name for this state directory, made once.
absl::StatusOr<std::string> OwnerName(const std::string& dir) {
  constexpr uint64_t kOwnerBytesMax = 64;
  const std::string path = dir + "/owner";
  absl::StatusOr<std::string> owner = base::ReadFile(path, kOwnerBytesMax);
  if (absl::IsNotFound(owner.status())) {
    owner = base::RandomHex(16);
    RETURN_IF_ERROR(base::WriteFileAtomic(path, *owner));
  }
  RETURN_IF_ERROR(owner.status());
  RETURN_IF_ERROR(base::CheckId(*owner, path));
  return owner;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Substrate>> MakeContainerTier(const ContainerTierOptions& options) {
  std::error_code error;
  ContainerTierOptions absolute = options;
  absolute.state_dir = std::filesystem::absolute(options.state_dir, error);
  absolute.helper_dir = std::filesystem::absolute(options.helper_dir, error);
  if (error) return base::ErrnoStatus(error.value(), fmt::format("resolve {}", options.state_dir));
  const std::string dir = absolute.state_dir + "/container";
  RETURN_IF_ERROR(base::MakeDirs(dir, 0700));
  // What imports of the last daemon left.
  std::filesystem::remove_all(dir + "/import", error);
  RETURN_IF_ERROR(base::MakeDirs(dir + "/import", 0700));
  ASSIGN_OR_RETURN(std::string owner, OwnerName(dir));
  absl::Status idmapped = ProbeIdMappedOverlay(dir);
  if (!idmapped.ok() && geteuid() == 0)
    base::LogWarn(fmt::format("container tier: no user namespaces: {}", idmapped.message()));
  ASSIGN_OR_RETURN(std::unique_ptr<RemoteCallLoop> loop, RemoteCallLoop::Make());
  ImageCatalogOptions catalog{absolute.state_dir + "/images", absolute.cold};
  if (absolute.disk_bytes_max != 0) catalog.disk_bytes_max = absolute.disk_bytes_max;
  const std::string server = absolute.helper_dir + "/reprise-imagefs";
  auto tier = std::make_unique<ContainerTier>(absolute, std::move(owner), std::move(idmapped),
                                              std::move(loop));
  if (absolute.chunk_images) {
    ASSIGN_OR_RETURN(auto images, ImageCatalog::Open(catalog));
    tier->images()->UseChunks(std::move(images),
                              std::make_unique<ImageMounts>(ImageMountsOptions{catalog, server}));
  }
  return tier;
}

}  // namespace reprise::sandboxd
