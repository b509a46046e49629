// What becomes of calls that were running when the last daemon died. Their owner (a supervisor) is
// asked; where it can no longer be asked, the policy of the request decides, and nothing is ever
// guessed.
#include <utility>

#include <fmt/format.h>

#include "base/format.h"
#include "base/log.h"
#include "base/status_macros.h"
#include "sandboxd/call_manager.h"
#include "sandboxd/limits.h"

namespace reprise::sandboxd {

absl::Status CallManager::Recover() {
  ASSIGN_OR_RETURN(std::vector<replay::journal::CallIntent> running, log_->Running());
  for (const replay::journal::CallIntent& intent : running) {
    auto call = std::make_shared<Call>(&host_, intent.call_id(), intent.sandbox_id());
    {
      absl::MutexLock lock(&mutex_);
      calls_[intent.call_id()] = call;
    }
    ASSIGN_OR_RETURN(replay::CallLog::Offsets offsets, log_->OutputOffsets(intent.call_id()));
    sandbox::SandboxSpec spec;
    if (absl::StatusOr<sandbox::Sandbox> box = sandboxes_->Get(intent.sandbox_id()); box.ok())
      spec = box->spec();
    call->MarkBegun(KeptBytes(intent.request(), spec), offsets);
    // A call that is parked here is taken up by its caller's next Execute.
    if (absl::Status status = TakeUp(call, intent, intent.request(), /*from_caller=*/false);
        !status.ok()) {
      base::LogWarn(fmt::format("call {}: {}", intent.call_id(), status.message()));
    }
  }
  if (!running.empty()) base::LogInfo(fmt::format("took up {} unfinished calls", running.size()));
  return options_.journal_health();
}

absl::Status CallManager::TakeUp(const CallPtr& call, const replay::journal::CallIntent& intent,
                                 const sandbox::ExecuteRequest& request, bool from_caller) {
  auto park = [&](absl::Status why) {
    call->Park(std::string(why.message()));
    return why;
  };
  absl::StatusOr<sandbox::Sandbox> stored = sandboxes_->Get(intent.sandbox_id());
  if (absl::IsNotFound(stored.status())) {
    call->EndWith(MakeResult(sandbox::OUTCOME_SANDBOX_LOST,
                             fmt::format("sandbox {} has no record", intent.sandbox_id())));
    return absl::OkStatus();
  }
  if (!stored.ok()) return park(stored.status());
  const sandbox::Sandbox& box = *stored;
  if (box.state() == sandbox::SANDBOX_STATE_LOST) {
    call->EndWith(MakeResult(sandbox::OUTCOME_SANDBOX_LOST,
                             fmt::format("sandbox {} is lost: {}", box.id(), box.message())));
    return absl::OkStatus();
  }
  if (box.state() == sandbox::SANDBOX_STATE_STOPPED) {
    call->EndWith(
        MakeResult(sandbox::OUTCOME_CANCELLED, fmt::format("sandbox {} was stopped", box.id())));
    return absl::OkStatus();
  }
  absl::StatusOr<SandboxManager::Lease> found = sandboxes_->Find(intent.sandbox_id());
  if (!found.ok()) return park(found.status());
  const SandboxManager::Lease& lease = *found;
  std::string why = "the machine was restarted while the call ran";
  if (intent.boot_id() == options_.boot_id) {
    absl::StatusOr<replay::CallLog::Offsets> offsets = log_->OutputOffsets(call->id());
    if (!offsets.ok()) return park(offsets.status());
    std::unique_ptr<CallSink> sink = call->MakeSink();
    Attachment attachment =
        lease.substrate->Reattach(lease.ref(), intent.placement(), call->id(),
                                  {offsets->stdout_bytes, offsets->stderr_bytes}, sink);
    if (attachment.state == AttachState::kAttached) {
      call->SetRunning(std::move(attachment.call));
      return absl::OkStatus();
    }
    why = attachment.reason;
    if (attachment.state == AttachState::kNeverStarted) {
      return StartElsewhere(call, lease.id, request, from_caller, intent.placement());
    }
  }
  return Interrupted(call, lease, request, why, from_caller);
}

absl::Status CallManager::Interrupted(const CallPtr& call, const SandboxManager::Lease& lease,
                                      const sandbox::ExecuteRequest& request,
                                      const std::string& why, bool from_caller) {
  switch (request.on_interrupt()) {
    case sandbox::INTERRUPT_POLICY_RERUN:
      base::LogInfo(fmt::format("call {} runs again, as its caller allowed: {}", call->id(), why));
      return StartElsewhere(call, lease.id, request, from_caller, /*unused=*/"");
    case sandbox::INTERRUPT_POLICY_RESTORE:
      call->EndWith(MakeResult(sandbox::OUTCOME_INTERRUPTED,
                               fmt::format("{}; {} has no snapshots to restore from", why,
                                           sandbox::Tier_Name(lease.spec->tier()))));
      return absl::OkStatus();
    default:
      call->EndWith(MakeResult(sandbox::OUTCOME_INTERRUPTED, why));
      return absl::OkStatus();
  }
}

absl::Status CallManager::StartElsewhere(const CallPtr& call, const std::string& sandbox_id,
                                         const sandbox::ExecuteRequest& request, bool from_caller,
                                         const std::string& unused) {
  auto park = [&](absl::Status why) {
    call->Park(std::string(why.message()));
    return why;
  };
  absl::StatusOr<SandboxManager::Lease> lease = sandboxes_->Use(sandbox_id);
  if (!lease.ok()) return park(lease.status());
  if (!from_caller && HasSecrets(request.env())) {
    return park(absl::FailedPreconditionError(
        fmt::format("call {} needs secret values that only its caller has: send its Execute again",
                    call->id())));
  }
  absl::StatusOr<std::string> placement = lease->substrate->Reserve(lease->ref());
  if (!placement.ok()) return park(placement.status());
  // Durable before anything runs there: after another crash this placement is the one to ask.
  absl::Status status = log_->Rebind(call->id(), *placement, options_.boot_id);
  if (status.ok()) {
    // Not before: as long as the journal names it, it answers for the call.
    if (!unused.empty()) lease->substrate->Unreserve(unused);
    call->MarkBegun(KeptBytes(request, *lease->spec), {});
    status = StartHere(call, *lease, *placement, request);
  }
  if (status.ok()) return absl::OkStatus();
  lease->substrate->Unreserve(*placement);
  call->EndWith(NotStarted(status));
  return absl::OkStatus();
}

}  // namespace reprise::sandboxd
