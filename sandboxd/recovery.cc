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
    gate_.Adopt(intent.sandbox_id(), intent.call_id(), /*alone=*/!intent.snapshot_id().empty());
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
    const std::string lost = fmt::format("sandbox {} was lost: {}", box.id(), box.message());
    if (!intent.snapshot_id().empty())
      return RestoreAndStart(call, intent, request, lost, from_caller);
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
  return Interrupted(call, intent, request, why, from_caller);
}

absl::Status CallManager::Interrupted(const CallPtr& call,
                                      const replay::journal::CallIntent& intent,
                                      const sandbox::ExecuteRequest& request,
                                      const std::string& why, bool from_caller) {
  const bool restore = request.on_interrupt() == sandbox::INTERRUPT_POLICY_RESTORE;
  if (restore && !intent.snapshot_id().empty())
    return RestoreAndStart(call, intent, request, why, from_caller);
  // Nothing of a call is in a sandbox that keeps nothing: it is as it was before.
  const absl::StatusOr<SandboxManager::Lease> lease = sandboxes_->Find(intent.sandbox_id());
  const bool nothing_kept = lease.ok() && !lease->substrate->KeepsState();
  if ((restore && nothing_kept) || request.on_interrupt() == sandbox::INTERRUPT_POLICY_RERUN) {
    base::LogInfo(fmt::format("call {} runs again, as its caller allowed: {}", call->id(), why));
    return StartElsewhere(call, intent.sandbox_id(), request, from_caller, /*unused=*/"");
  }
  call->EndWith(MakeResult(sandbox::OUTCOME_INTERRUPTED,
                           restore ? why + "; there is no snapshot from before the call" : why));
  return absl::OkStatus();
}

absl::Status CallManager::RestoreAndStart(const CallPtr& call,
                                          const replay::journal::CallIntent& intent,
                                          const sandbox::ExecuteRequest& request,
                                          const std::string& why, bool from_caller) {
  auto park = [&](absl::Status status) {
    call->Park(std::string(status.message()));
    return status;
  };
  if (!from_caller && HasSecrets(request.env())) {
    return park(absl::FailedPreconditionError(
        fmt::format("call {} needs secret values that only its caller has: send its Execute again",
                    call->id())));
  }
  if (call->cancelled()) {
    call->EndWith(MakeResult(sandbox::OUTCOME_CANCELLED, "cancelled before it was run again"));
    return absl::OkStatus();
  }
  const absl::Status back = sandboxes_->RollBack(intent.sandbox_id(), intent.snapshot_id());
  if (absl::IsUnavailable(back)) return park(back);
  if (!back.ok()) {
    call->EndWith(MakeResult(sandbox::OUTCOME_INTERRUPTED,
                             fmt::format("{}; it was not rolled back: {}", why, back.message())));
    return absl::OkStatus();
  }
  base::LogInfo(
      fmt::format("call {} runs again in its sandbox as it was before: {}", call->id(), why));
  return StartElsewhere(call, intent.sandbox_id(), request, from_caller, /*unused=*/"");
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
