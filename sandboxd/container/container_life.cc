#include "sandboxd/container/container_life.h"

#include <fmt/format.h>
#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <chrono>
#include <filesystem>
#include <thread>

#include "base/clock.h"
#include "base/fd.h"
#include "base/format.h"
#include "base/ids.h"
#include "base/log.h"
#include "base/status_macros.h"
#include "sandboxd/container/idmap.h"
#include "sandboxd/container/oci_spec.h"
#include "sandboxd/container/oom_watch.h"
#include "sandboxd/container/overlay.h"
#include "sandboxd/container/runtime_class.h"
#include "sandboxd/link/agent_link.h"

namespace reprise::sandboxd {
namespace {

constexpr char kOwnerLabel[] = "reprise/owner";
constexpr char kBaseIdLabel[] = "reprise/base-id";
constexpr char kNamePrefix[] = "reprise-";
constexpr int64_t kCreateLeaseSeconds = 15 * 60;
constexpr int64_t kAgentStartMs = 30'000;  // from the start of the task to the first answer
constexpr int64_t kAgentPollUs = 2'000;
constexpr int64_t kTaskLookUs = 200'000;
constexpr int64_t kKillWaitMs = 30'000;
constexpr uint64_t kAgentLogBytesMax = 64 << 10;
constexpr size_t kAgentWordsMax = 300;

// Host names are short and simple; what of the id is neither becomes '-'.
std::string HostName(const std::string& sandbox_id) {
  std::string name = sandbox_id.substr(0, 63);
  for (char& c : name) {
    if (!std::isalnum(static_cast<unsigned char>(c))) c = '-';
  }
  return name;
}

// Others have a network stack that the host's kernel does not see.
absl::Status CheckHasNetwork(const sandbox::SandboxSpec& spec, const RuntimeClass& runtime) {
  if (runtime.shim == kRuncShim) return absl::OkStatus();
  return absl::UnimplementedError(fmt::format(
      "network: containers of runtime class {} have none; use runc or crun", spec.runtime()));
}

}  // namespace

// One creation: knows what it has made, and takes it back unless it was kept.
class ContainerLife::Attempt {
 public:
  Attempt(ContainerLife* life, std::vector<sandbox::StepTime>* steps)
      : life_(life),
        steps_(steps),
        name_(kNamePrefix + base::RandomHex(12)),
        dir_(life->BoxDir(name_)) {}
  ~Attempt() {
    Unmount();
    if (kept_) return;
    life_->ids_.Return(base_id_);
    if (absl::Status status = life_->Remove(name_); !status.ok()) {
      base::LogWarn(fmt::format("container {} that failed to start is not removed yet: {}", name_,
                                status.message()));
    }
  }
  Attempt(const Attempt&) = delete;
  Attempt& operator=(const Attempt&) = delete;

  const std::string& name() const { return name_; }
  void Keep() { kept_ = true; }

  absl::Status Prepare(const sandbox::SandboxSpec& spec) {
    RETURN_IF_ERROR(life_->LearnIds());
    ASSIGN_OR_RETURN(runtime_, FindRuntimeClass(spec.runtime()));
    if (life_->options_.idmapped) {
      ASSIGN_OR_RETURN(base_id_, life_->ids_.Take());
    }
    ASSIGN_OR_RETURN(image_, life_->images_->Resolve(spec.image()));
    Step("image");
    ASSIGN_OR_RETURN(lease_,
                     LeaseHolder::Make(life_->client_, kCreateLeaseSeconds, /*collect=*/false));
    if (!image_.lower.empty()) return StackLayers();
    ASSIGN_OR_RETURN(mounts_,
                     life_->client_->PrepareSnapshot(lease_->id(), name_, image_.top_snapshot,
                                                     {{kOwnerLabel, life_->options_.owner}}));
    Step("snapshot");
    return absl::OkStatus();
  }

  absl::Status Mount(const sandbox::SandboxSpec& spec) {
    const std::string run_dir = life_->RunDir(name_);
    RETURN_IF_ERROR(base::MakeDirs(run_dir, 0700));
    if (chown(run_dir.c_str(), base_id_, base_id_) != 0)
      return base::ErrnoStatus(errno, "chown " + run_dir);
    RETURN_IF_ERROR(WriteBoxImage(dir_, image_));
    binds_.assign(spec.binds().begin(), spec.binds().end());
    if (base_id_ == 0) return absl::OkStatus();
    ASSIGN_OR_RETURN(const OverlayDirs dirs, ParseOverlay(mounts_));
    rootfs_mounted_ = true;
    RETURN_IF_ERROR(base::MakeDirs(RootDir(), 0700));
    RETURN_IF_ERROR(MountRootfs(dirs, RootDir(), base_id_));
    mounts_ = {{"bind", RootDir() + "/rootfs", {"rbind", "rw"}}};
    RETURN_IF_ERROR(base::MakeDirs(dir_ + "/binds", 0700));
    for (sandbox::Bind& bind : binds_) {
      const std::string target = fmt::format("{}/binds/{}", dir_, bind_targets_.size());
      bind_targets_.push_back(target);
      absl::Status status = MountIdMapped(bind.host_path(), target, base_id_);
      if (!status.ok() && bind.writable()) {
        return absl::Status(status.code(),
                            fmt::format("bind of {}: {}", bind.host_path(), status.message()));
      }
      // Read-only files are of use with the host's owners too.
      if (status.ok()) bind.set_host_path(target);
    }
    Step("mounts");
    return absl::OkStatus();
  }

  absl::Status Start(const std::string& sandbox_id, const sandbox::SandboxSpec& spec,
                     const sandbox::Limits& limits) {
    ContainerSpecInput input;
    input.hostname = HostName(sandbox_id);
    input.agent_path = life_->options_.agent_path;
    input.run_dir = life_->RunDir(name_);
    input.agent_args = {
        "--run-dir",     kRunDirInside,
        "--user",        spec.user().empty() ? image_.config.user : spec.user(),
        "--working-dir", spec.working_dir().empty() ? kDefaultWorkingDir : spec.working_dir()};
    input.env = image_.config.env;
    for (const std::string& variable : input.env) {
      if (variable.starts_with("HOME="))
        input.agent_args.insert(input.agent_args.end(), {"--home", variable.substr(5)});
    }
    input.binds = binds_;
    input.limits = limits;
    input.cgroup_path = CgroupPath(name_);
    input.base_id = base_id_;
    ContainerRecord record{
        name_,
        image_.name,
        runtime_.shim,
        runtime_.binary,
        name_,
        MakeRuntimeSpec(input),
        {{kOwnerLabel, life_->options_.owner}, {kBaseIdLabel, std::to_string(base_id_)}}};
    RETURN_IF_ERROR(life_->client_->CreateContainer(lease_->id(), record));
    Step("containerd.container");
    ASSIGN_OR_RETURN(const uint32_t process, life_->client_->CreateTask(name_, mounts_, LogPath()));
    // The container has its own copies of all mounts.
    Unmount();
    Step("containerd.task");
    // Before anything of the container runs.
    if (spec.has_network()) {
      RETURN_IF_ERROR(life_->options_.gates->Ensure(
          dir_, spec.network(), [process] { return static_cast<pid_t>(process); }));
      Step("network");
    }
    RETURN_IF_ERROR(life_->client_->StartTask(name_));
    RETURN_IF_ERROR(WaitForAgent());
    Step("agent");
    return absl::OkStatus();
  }

 private:
  static constexpr char kDefaultWorkingDir[] = "/work";

  std::string RootDir() const { return dir_ + "/root"; }
  std::string LogPath() const { return dir_ + "/agent.log"; }

  // The layers are mounted already; only what the container writes needs a place.
  absl::Status StackLayers() {
    const std::string upper = dir_ + "/layer/fs", work = dir_ + "/layer/work";
    RETURN_IF_ERROR(base::MakeDirs(dir_, 0700));
    RETURN_IF_ERROR(base::MakeDirs(upper));
    RETURN_IF_ERROR(base::MakeDirs(work));
    std::string lower = "lowerdir=";
    for (size_t i = 0; i < image_.lower.size(); ++i) lower += (i == 0 ? "" : ":") + image_.lower[i];
    mounts_ = {{"overlay",
                "overlay",
                {"index=off", "redirect_dir=off", "metacopy=off", "workdir=" + work,
                 "upperdir=" + upper, std::move(lower)}}};
    Step("layers");
    return absl::OkStatus();
  }

  void Step(const char* name) {
    if (steps_ != nullptr) {
      sandbox::StepTime& step = steps_->emplace_back();
      step.set_step(name);
      step.set_duration_us(watch_.ElapsedMicros());
    }
    watch_.Restart();
  }

  // The task takes a moment until its agent listens; one that ended says why in its log.
  absl::Status WaitForAgent() {
    const int64_t deadline = base::MonotonicMicros() + kAgentStartMs * 1000;
    int64_t next_look = base::MonotonicMicros() + kTaskLookUs;
    while (true) {
      const absl::Status answer = AgentRequest(
          life_->RunDir(name_), agent::RawFrame(agent::FrameType::kPing, ""), kAgentStartMs);
      if (!absl::IsUnavailable(answer)) return answer;
      const int64_t now = base::MonotonicMicros();
      if (now >= deadline)
        return absl::DeadlineExceededError("the agent of the container did not start in 30 s");
      if (now >= next_look) {
        next_look = now + kTaskLookUs;
        ASSIGN_OR_RETURN(const TaskInfo task, life_->client_->GetTask(name_));
        if (task.state == TaskState::kNone || task.state == TaskState::kStopped) {
          std::string words = base::ReadFile(LogPath(), kAgentLogBytesMax).value_or("");
          words = Printable(words.substr(0, words.find('\n')));
          return absl::InternalError(
              fmt::format("the container ended while it started, with status {}: {}",
                          task.exit_status, words.substr(0, kAgentWordsMax)));
        }
      }
      std::this_thread::sleep_for(std::chrono::microseconds(kAgentPollUs));
    }
  }

  void Unmount() {
    for (const std::string& target : bind_targets_) LogFailure(UnmountIdMapped(target));
    bind_targets_.clear();
    if (std::exchange(rootfs_mounted_, false)) LogFailure(UnmountRootfs(RootDir()));
  }
  void LogFailure(const absl::Status& status) const {
    if (!status.ok()) base::LogWarn(fmt::format("container {}: {}", name_, status.message()));
  }

  ContainerLife* const life_;
  std::vector<sandbox::StepTime>* const steps_;
  const std::string name_, dir_;
  base::Stopwatch watch_;
  RuntimeClass runtime_;
  ResolvedImage image_;
  uint32_t base_id_ = 0;
  std::unique_ptr<LeaseHolder> lease_;
  std::vector<MountSpec> mounts_;
  std::vector<sandbox::Bind> binds_;
  std::vector<std::string> bind_targets_;
  bool rootfs_mounted_ = false;
  bool kept_ = false;
};

absl::Status ContainerLife::CheckSpec(const sandbox::SandboxSpec& spec) {
  if (spec.image().empty()) {
    return absl::InvalidArgumentError(
        "the container tier needs spec.image: name an imported image");
  }
  if (spec.limits().disk_bytes() != 0) {
    return absl::UnimplementedError("the container tier cannot limit disk_bytes: leave it 0");
  }
  for (const sandbox::Bind& bind : spec.binds()) {
    const std::filesystem::path inside =
        std::filesystem::path(bind.sandbox_path()).lexically_normal();
    const std::string first =
        inside.begin() == inside.end() ? "" : std::next(inside.begin())->string();
    for (const char* const taken : {"", "proc", "sys", "dev", ".reprise"}) {
      if (first != taken) continue;
      return absl::InvalidArgumentError(fmt::format(
          "bind at {} refused: /{} belongs to the container itself", bind.sandbox_path(), taken));
    }
  }
  ASSIGN_OR_RETURN(const RuntimeClass runtime, FindRuntimeClass(spec.runtime()));
  return spec.has_network() ? CheckHasNetwork(spec, runtime) : absl::OkStatus();
}

absl::StatusOr<pid_t> ContainerLife::ProcessOf(const std::string& container) {
  ASSIGN_OR_RETURN(const TaskInfo task, client_->GetTask(container));
  if (task.state == TaskState::kNone || task.state == TaskState::kStopped)
    return absl::NotFoundError(fmt::format("the container {} has ended", container));
  return static_cast<pid_t>(task.pid);
}

absl::Status ContainerLife::SetNetwork(const std::string& container,
                                       const sandbox::NetworkPolicy& policy) {
  return options_.gates->Ensure(BoxDir(container), policy, [&] { return ProcessOf(container); });
}

absl::Status ContainerLife::KeepNetwork(const std::string& container,
                                        const sandbox::NetworkPolicy& policy) {
  return options_.gates->Keep(BoxDir(container), policy, [&] { return ProcessOf(container); });
}

absl::StatusOr<std::string> ContainerLife::Create(const std::string& sandbox_id,
                                                  const sandbox::SandboxSpec& spec,
                                                  const sandbox::Limits& limits,
                                                  std::vector<sandbox::StepTime>* steps) {
  RETURN_IF_ERROR(CheckSpec(spec));
  Attempt attempt(this, steps);
  RETURN_IF_ERROR(attempt.Prepare(spec));
  RETURN_IF_ERROR(attempt.Mount(spec));
  RETURN_IF_ERROR(attempt.Start(sandbox_id, spec, limits));
  attempt.Keep();
  return attempt.name();
}

absl::Status ContainerLife::RemoveTask(const std::string& container) {
  ASSIGN_OR_RETURN(const TaskInfo task, client_->GetTask(container));
  if (task.state == TaskState::kNone) return absl::OkStatus();
  if (task.state != TaskState::kStopped) {
    absl::Status killed = client_->KillTask(container, SIGKILL, /*all=*/true);
    // A frozen container dies when it is thawed.
    if (task.state == TaskState::kPaused) (void)client_->ResumeTask(container);
    absl::Status waited = client_->WaitTask(container, kKillWaitMs);
    if (!waited.ok()) return killed.ok() ? waited : killed;
  }
  return client_->DeleteTask(container);
}

absl::Status ContainerLife::Remove(const std::string& container) {
  RETURN_IF_ERROR(base::CheckId(container, "placement"));
  RETURN_IF_ERROR(RemoveTask(container));
  uint32_t base_id = 0;
  if (absl::StatusOr<ContainerRecord> record = client_->GetContainer(container); record.ok()) {
    const std::string& text = record->labels[kBaseIdLabel];
    std::from_chars(text.data(), text.data() + text.size(), base_id);
  }
  RETURN_IF_ERROR(client_->DeleteContainer(container));
  RETURN_IF_ERROR(client_->RemoveSnapshot(container));
  RETURN_IF_ERROR(RemoveBoxDir(container));
  ids_.Return(base_id);
  return absl::OkStatus();
}

// Never follows into a mount: what is still mounted is unmounted first, or the directory stays.
absl::Status ContainerLife::RemoveBoxDir(const std::string& container) const {
  const std::string dir = BoxDir(container);
  std::error_code error;
  for (const auto& bind : std::filesystem::directory_iterator(dir + "/binds", error)) {
    RETURN_IF_ERROR(UnmountIdMapped(bind.path()));
  }
  RETURN_IF_ERROR(UnmountRootfs(dir + "/root"));
  std::filesystem::remove_all(dir, error);
  return error ? base::ErrnoStatus(error.value(), "remove " + dir) : absl::OkStatus();
}

absl::Status ContainerLife::RemoveOthers(const std::set<std::string>& known) {
  absl::Status worst;
  auto remove = [&](const std::string& container) {
    base::LogInfo(
        fmt::format("removing container {}: no sandbox of the journal has it", container));
    if (absl::Status status = Remove(container); !status.ok()) worst = status;
  };
  ASSIGN_OR_RETURN(const std::vector<ContainerRecord> records, client_->ListContainers());
  for (const ContainerRecord& record : records) {
    auto owner = record.labels.find(kOwnerLabel);
    if (owner != record.labels.end() && owner->second == options_.owner &&
        !known.contains(record.id)) {
      remove(record.id);
    }
  }
  std::error_code error;
  std::vector<std::string> left;
  for (const auto& entry : std::filesystem::directory_iterator(BoxesDir(), error)) {
    if (!known.contains(entry.path().filename())) left.push_back(entry.path().filename());
  }
  for (const std::string& container : left) remove(container);
  return worst;
}

// Once: which ids containers of this containerd have, this daemon's and others'.
absl::Status ContainerLife::LearnIds() {
  absl::MutexLock lock(&learn_mutex_);
  if (ids_learned_) return absl::OkStatus();
  RETURN_IF_ERROR(client_->EnsureNamespace());
  ASSIGN_OR_RETURN(const std::vector<ContainerRecord> records, client_->ListContainers());
  for (const ContainerRecord& record : records) {
    auto found = record.labels.find(kBaseIdLabel);
    uint32_t base_id = 0;
    if (found == record.labels.end()) continue;
    std::from_chars(found->second.data(), found->second.data() + found->second.size(), base_id);
    ids_.Reserve(base_id);
  }
  ids_learned_ = true;
  return absl::OkStatus();
}

}  // namespace reprise::sandboxd
