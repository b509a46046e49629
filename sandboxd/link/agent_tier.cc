#include "sandboxd/link/agent_tier.h"

#include <fmt/format.h>

#include <utility>

#include "base/log.h"
#include "base/status_macros.h"
#include "sandboxd/link/agent_link.h"

namespace reprise::sandboxd {
namespace {

constexpr int64_t kPingMs = 10'000;

}  // namespace

absl::StatusOr<std::string> AgentTier::Reserve(const SandboxRef& sandbox) {
  RETURN_IF_ERROR(NeedsAgent(sandbox.placement));
  return sandbox.placement;
}

absl::StatusOr<std::unique_ptr<RunningCall>> AgentTier::Start(
    const SandboxRef& sandbox, const std::string& placement, const sandbox::ExecuteRequest& request,
    std::unique_ptr<CallSink> sink) {
  if (placement != sandbox.placement) {
    return absl::FailedPreconditionError(
        fmt::format("sandbox {} was made anew since the call began", sandbox.id));
  }
  RETURN_IF_ERROR(NeedsAgent(sandbox.placement));
  RETURN_IF_ERROR(CheckCallLimits(request.limits(), *sandbox.spec));
  RETURN_IF_ERROR(WriteInputFiles(RunDir(placement), sandbox.spec->user(), request));
  agent::Start start = ToStart(request);
  start.tag = CallTag(placement);
  return loop_->Start(Owner(placement), std::move(start), request.stdin(), /*files=*/"",
                      std::move(sink));
}

Attachment AgentTier::Reattach(const SandboxRef& sandbox, const std::string& placement,
                               const std::string& call_id, OutputPosition from,
                               std::unique_ptr<CallSink>& sink) {
  auto lost = [](std::string why) {
    return Attachment{AttachState::kLost, std::move(why), nullptr};
  };
  if (placement != sandbox.placement)
    return lost(fmt::format("the {} that ran the call was replaced by another", noun_));
  const absl::StatusOr<bool> paused = Paused(placement);
  if (!paused.ok()) return lost(std::string(paused.status().message()));
  if (*paused) Log(sandbox, ResumeSandbox(sandbox));
  Attachment attachment = loop_->Attach(Owner(placement), call_id, from, sink);
  if (*paused) Log(sandbox, PauseSandbox(sandbox));
  return attachment;
}

absl::StatusOr<RemotePath> AgentTier::At(const SandboxRef& sandbox, const std::string& path) {
  RETURN_IF_ERROR(NeedsAgent(sandbox.placement));
  return RemotePath{RunDir(sandbox.placement), path, sandbox.spec->user()};
}

absl::Status AgentTier::ReadFile(const SandboxRef& sandbox, const std::string& path,
                                 const std::function<absl::Status(std::string_view)>& chunk) {
  ASSIGN_OR_RETURN(const RemotePath file, At(sandbox, path));
  return ReadRemoteFile(file, chunk);
}

absl::Status AgentTier::WriteFile(const SandboxRef& sandbox, const std::string& path, uint32_t mode,
                                  const std::function<absl::StatusOr<std::string>()>& next) {
  ASSIGN_OR_RETURN(const RemotePath file, At(sandbox, path));
  return WriteRemoteFile(file, mode, /*make_parents=*/false, next);
}

absl::StatusOr<std::vector<sandbox::FileInfo>> AgentTier::ListDir(const SandboxRef& sandbox,
                                                                  const std::string& path) {
  ASSIGN_OR_RETURN(const RemotePath directory, At(sandbox, path));
  return ListRemoteDir(directory);
}

absl::Status AgentTier::MakeDir(const SandboxRef& sandbox, const std::string& path) {
  ASSIGN_OR_RETURN(const RemotePath directory, At(sandbox, path));
  return MakeRemoteDir(directory);
}

absl::Status AgentTier::Move(const SandboxRef& sandbox, const std::string& from,
                             const std::string& to) {
  ASSIGN_OR_RETURN(const RemotePath source, At(sandbox, from));
  return MoveRemotePath(source, to);
}

absl::Status AgentTier::Remove(const SandboxRef& sandbox, const std::string& path) {
  ASSIGN_OR_RETURN(const RemotePath target, At(sandbox, path));
  return RemoveRemotePath(target);
}

absl::StatusOr<std::unique_ptr<FileWatch>> AgentTier::Watch(const SandboxRef& sandbox,
                                                            const std::string& path,
                                                            bool recursive) {
  ASSIGN_OR_RETURN(const RemotePath directory, At(sandbox, path));
  return WatchRemoteDir(directory, recursive);
}

absl::Status AgentTier::Ping(const std::string& placement) const {
  return AgentRequest(RunDir(placement), agent::RawFrame(agent::FrameType::kPing, ""), kPingMs);
}

void AgentTier::PruneCalls() {
  for (const std::string& placement : Known()) {
    const absl::StatusOr<bool> paused = Paused(placement);
    if (!paused.ok() || *paused || !NeedsAgent(placement).ok()) continue;
    const absl::Status status =
        AgentRequest(RunDir(placement), agent::RawFrame(agent::FrameType::kPrune, ""), kPingMs);
    if (!status.ok()) {
      base::LogWarn(fmt::format("calls that nobody needs stay in {} {}: {}", noun_, placement,
                                std::string(status.message())));
    }
  }
}

void AgentTier::Know(const std::string& placement) {
  absl::MutexLock lock(&known_mutex_);
  known_.insert(placement);
}

void AgentTier::Forget(const std::string& placement) {
  absl::MutexLock lock(&known_mutex_);
  known_.erase(placement);
}

std::set<std::string> AgentTier::Known() const {
  absl::MutexLock lock(&known_mutex_);
  return known_;
}

void AgentTier::Log(const SandboxRef& sandbox, const absl::Status& status) {
  if (!status.ok())
    base::LogWarn(fmt::format("sandbox {}: {}", sandbox.id, std::string(status.message())));
}

absl::Status CheckSandboxLimit(std::string_view tier, std::string_view what, uint64_t asked,
                               uint64_t has, uint64_t default_value) {
  if (asked == 0 || asked == has || asked == default_value) return absl::OkStatus();
  return absl::UnimplementedError(
      fmt::format("the {0} tier limits {1} per sandbox, not per call: the call asks for {2}, its "
                  "sandbox has {3}; put {1} into the sandbox's limits",
                  tier, what, asked, has));
}

}  // namespace reprise::sandboxd
