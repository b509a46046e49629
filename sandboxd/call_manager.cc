#include "sandboxd/call_manager.h"

#include <utility>

#include <fmt/format.h>

#include "base/failpoint.h"
#include "base/format.h"
#include "base/ids.h"
#include "base/log.h"
#include "base/status_macros.h"
#include "sandboxd/limits.h"

namespace reprise::sandboxd {
namespace {

constexpr int kSignalMax = 64;
constexpr size_t kStdinWriteMax = 4u << 20;

absl::Status Stopping() { return absl::UnavailableError("sandboxd is stopping: try again"); }
absl::Status Refusal() {
  return absl::UnavailableError(
      "too many requests wait already, or sandboxd is stopping: try again");
}

}  // namespace

CallManager::CallManager(CallOptions options, replay::CallLog* log, SandboxManager* sandboxes)
    : options_(std::move(options)),
      log_(log),
      sandboxes_(sandboxes),
      admit_pool_(options_.admit_threads, options_.readers_max),
      start_pool_(options_.start_threads, options_.calls_max),
      commit_pool_(options_.commit_threads, 2 * options_.calls_max) {
  host_.log = log_;
  host_.metrics = &metrics_;
  host_.journal_pool = &commit_pool_;
  host_.forget = [this](const Call& call) { Forget(call); };
  host_.written = [this](const Call& call) { gate_.Leave(call.sandbox_id(), call.id()); };
  host_.sandbox_lost = [this](const Call& call) {
    if (!admit_pool_.TryPost([this, id = call.sandbox_id()] { sandboxes_->CheckLost(id); })) {
      base::LogWarn(
          fmt::format("sandbox {} was reported lost and is not looked at: no thread is free",
                      call.sandbox_id()));
    }
  };
}

CallManager::~CallManager() { Shutdown(); }

void CallManager::Detach() {
  std::vector<CallPtr> calls;
  {
    absl::MutexLock lock(&mutex_);
    stopping_ = true;
    sandboxes_->Stopping();
    for (const auto& [id, call] : calls_) calls.push_back(call);
  }
  for (const CallPtr& call : calls) call->Abandon(Stopping());
}

void CallManager::Shutdown() {
  Detach();
  start_pool_.Close();
  admit_pool_.Close();
  commit_pool_.Close();
  absl::MutexLock lock(&mutex_);
  calls_.clear();
}

// ---- the table

CallManager::CallPtr CallManager::Lookup(const std::string& call_id) {
  absl::MutexLock lock(&mutex_);
  auto found = calls_.find(call_id);
  return found == calls_.end() ? nullptr : found->second;
}

void CallManager::Forget(const Call& call) {
  absl::MutexLock lock(&mutex_);
  auto found = calls_.find(call.id());
  if (found == calls_.end() || found->second.get() != &call) return;
  calls_.erase(found);
  gate_.Leave(call.sandbox_id(), call.id());
}

std::vector<CallManager::CallPtr> CallManager::CallsOf(const std::string& sandbox_id) {
  std::vector<CallPtr> calls;
  absl::MutexLock lock(&mutex_);
  for (const auto& [id, call] : calls_) {
    if (call->sandbox_id() == sandbox_id) calls.push_back(call);
  }
  return calls;
}

absl::StatusOr<CallManager::CallPtr> CallManager::Claim(const sandbox::ExecuteRequest& request,
                                                        bool* mine) {
  absl::MutexLock lock(&mutex_);
  *mine = false;
  if (stopping_) return Stopping();
  auto found = calls_.find(request.call_id());
  if (found != calls_.end()) return found->second;
  if (calls_.size() >= options_.calls_max) {
    return absl::ResourceExhaustedError(
        fmt::format("call {} refused: {} calls are unfinished, which is the limit; try again later",
                    request.call_id(), calls_.size()));
  }
  *mine = true;
  return calls_
      .emplace(request.call_id(),
               std::make_shared<Call>(&host_, request.call_id(), request.sandbox_id()))
      .first->second;
}

uint64_t CallManager::KeptBytes(const sandbox::ExecuteRequest& request,
                                const sandbox::SandboxSpec& spec) const {
  return ResolveLimits(request.limits(), spec.limits(), sandboxes_->DefaultLimits(spec.tier()))
      .output_bytes_kept();
}

// ---- Execute and Attach

std::shared_ptr<CallStream> CallManager::Execute(sandbox::ExecuteRequest request) {
  auto stream = std::make_shared<CallStream>(log_, &admit_pool_);
  if (absl::Status status = CheckExecute(request); !status.ok()) {
    stream->Fail(status);
    return stream;
  }
  if (request.call_id().empty()) request.set_call_id(fmt::format("call-{}", base::RandomHex(16)));
  PostAdmit(std::make_shared<const sandbox::ExecuteRequest>(std::move(request)), stream);
  return stream;
}

std::shared_ptr<CallStream> CallManager::Attach(std::string call_id) {
  auto stream = std::make_shared<CallStream>(log_, &admit_pool_);
  if (absl::Status status = base::CheckId(call_id, "call_id", /*allow_slash=*/true); !status.ok()) {
    stream->Fail(status);
    return stream;
  }
  bool posted = admit_pool_.TryPost([this, call_id, stream] {
    CallPtr call = Lookup(call_id);  // first: a call that ends in between is found by the log
    absl::StatusOr<replay::CallLog::Found> found = log_->FindById(call_id);
    if (absl::IsNotFound(found.status())) {
      stream->Fail(absl::NotFoundError(fmt::format("call {} does not exist", call_id)));
    } else if (!found.ok()) {
      stream->Fail(found.status());
    } else if (found->result.has_value()) {
      Replay(stream, call_id, found->result->result());
    } else if (call != nullptr || (call = Lookup(call_id)) != nullptr) {
      call->AddReader(stream, /*attached=*/true);
    } else {
      stream->Fail(
          absl::UnavailableError(fmt::format("call {} is about to end: try again", call_id)));
    }
  });
  if (!posted) stream->Fail(Refusal());
  return stream;
}

void CallManager::Replay(const StreamPtr& stream, const std::string& call_id,
                         sandbox::Result result) {
  metrics_.replayed.Add();
  result.set_replayed(true);
  stream->Begin(call_id, /*replayed=*/true, /*attached=*/false);
  stream->Finish(result);
}

void CallManager::PostAdmit(RequestPtr request, StreamPtr stream) {
  const base::Stopwatch waited;
  if (admit_pool_.TryPost([this, request, stream, waited] { Admit(request, stream, waited); }))
    return;
  metrics_.refused.Add();
  stream->Fail(Refusal());
}

void CallManager::Admit(RequestPtr request, StreamPtr stream, const base::Stopwatch& waited) {
  if (stream->failed()) return;  // the caller has gone: nothing was begun for it
  const std::string& id = request->call_id();
  CallPtr call = Lookup(id);
  if (call != nullptr && !call->decided()) {
    call->WhenDecided([this, request, stream] { PostAdmit(request, stream); });
    return;
  }
  absl::StatusOr<replay::CallLog::Found> found = log_->Find(*request);
  if (found.ok() && !found->result.has_value() && call == nullptr) {
    // Ended, or begun, between the two looks.
    call = Lookup(id);
    if (call == nullptr) found = log_->Find(*request);
  }
  if (found.ok()) {
    if (found->result.has_value()) {
      Replay(stream, id, found->result->result());
    } else if (call != nullptr) {
      Join(call, request, stream);
    } else {
      stream->Fail(absl::InternalError(
          fmt::format("call {} runs in the journal and nobody follows it: restart sandboxd", id)));
    }
    return;
  }
  if (!absl::IsNotFound(found.status())) {
    stream->Fail(found.status());
    return;
  }
  if (absl::Status health = options_.journal_health(); !health.ok()) {
    stream->Fail(health);
    return;
  }
  bool mine = false;
  absl::StatusOr<CallPtr> claimed = Claim(*request, &mine);
  if (!claimed.ok()) {
    metrics_.refused.Add();
    stream->Fail(claimed.status());
  } else if (!mine) {
    (*claimed)->WhenDecided([this, request, stream] { PostAdmit(request, stream); });
  } else if (!start_pool_.TryPost(
                 [this, call = *claimed, request, stream, waited] {
                   Begin(call, request, stream, waited);
                 })) {
    GiveUp(*claimed, Refusal(), stream);
  }
}

void CallManager::Join(const CallPtr& call, const RequestPtr& request, const StreamPtr& stream) {
  metrics_.joined.Add();
  if (!call->Unpark()) {
    call->AddReader(stream, /*attached=*/true);
    return;
  }
  bool posted = start_pool_.TryPost([this, call, request, stream] {
    absl::StatusOr<replay::CallLog::Found> found = log_->FindById(call->id());
    absl::Status status =
        found.ok() ? TakeUp(call, found->intent, *request, /*from_caller=*/true) : found.status();
    if (status.ok()) {
      call->AddReader(stream, /*attached=*/true);
    } else {
      stream->Fail(status);
    }
  });
  if (!posted) {
    call->Park("no thread was free to take it up");
    stream->Fail(Refusal());
  }
}

void CallManager::GiveUp(const CallPtr& call, const absl::Status& status, const StreamPtr& stream) {
  metrics_.refused.Add();
  Forget(*call);  // first: whoever waited for the decision claims the id anew
  stream->Fail(status);
  call->Abandon(status);
}

void CallManager::Begin(const CallPtr& call, const RequestPtr& request, const StreamPtr& stream,
                        const base::Stopwatch& waited) {
  if (call->decided())
    return GiveUp(call, Stopping(), stream);  // abandoned while it waited for a thread
  const bool restore = request->on_interrupt() == sandbox::INTERRUPT_POLICY_RESTORE;
  if (absl::Status entered = gate_.Enter(request->sandbox_id(), call->id(), /*alone=*/restore);
      !entered.ok()) {
    return GiveUp(call, entered, stream);
  }
  absl::StatusOr<SandboxManager::Lease> lease = sandboxes_->Use(request->sandbox_id());
  if (!lease.ok()) return GiveUp(call, lease.status(), stream);
  std::string snapshot_id;
  if (restore) {
    absl::StatusOr<std::string> taken =
        sandboxes_->SnapshotBefore(request->sandbox_id(), call->id());
    if (!taken.ok()) return GiveUp(call, taken.status(), stream);
    snapshot_id = *std::move(taken);
  }
  absl::StatusOr<std::string> placement = lease->substrate->Reserve(lease->ref());
  if (!placement.ok()) return GiveUp(call, placement.status(), stream);

  replay::journal::CallIntent intent;
  intent.set_call_id(call->id());
  intent.set_sandbox_id(request->sandbox_id());
  *intent.mutable_request() = *request;
  intent.set_boot_id(options_.boot_id);
  intent.set_placement(*placement);
  intent.set_snapshot_id(snapshot_id);
  metrics_.queue_seconds.Observe(static_cast<double>(waited.ElapsedMicros()) / 1e6);
  const base::Stopwatch writing;
  absl::StatusOr<replay::journal::CallIntent> begun = log_->Begin(std::move(intent));
  if (!begun.ok()) {
    lease->substrate->Unreserve(*placement);
    if (absl::IsAlreadyExists(begun.status())) {  // it ran between the look and the claim
      Forget(*call);
      call->Abandon(begun.status());
      return PostAdmit(request, stream);
    }
    return GiveUp(call, begun.status(), stream);
  }
  metrics_.intent_seconds.Observe(static_cast<double>(writing.ElapsedMicros()) / 1e6);
  base::FailPoint("call.intent");
  call->MarkBegun(KeptBytes(*request, *lease->spec), {});
  call->AddReader(stream, /*attached=*/false);
  if (call->cancelled()) {
    lease->substrate->Unreserve(*placement);
    call->EndWith(MakeResult(sandbox::OUTCOME_CANCELLED, "cancelled before it was started"));
    return;
  }
  if (absl::Status status = StartHere(call, *lease, *placement, *request); !status.ok()) {
    lease->substrate->Unreserve(*placement);
    call->EndWith(NotStarted(status));
  }
}

absl::Status CallManager::StartHere(const CallPtr& call, const SandboxManager::Lease& lease,
                                    const std::string& placement,
                                    const sandbox::ExecuteRequest& request) {
  sandbox::ExecuteRequest resolved =
      ResolveRequest(request, *lease.spec, sandboxes_->DefaultLimits(lease.spec->tier()));
  absl::StatusOr<std::unique_ptr<RunningCall>> running =
      lease.substrate->Start(lease.ref(), placement, resolved, call->MakeSink());
  if (!running.ok()) return running.status();
  base::FailPoint("call.started");
  call->SetRunning(*std::move(running));
  return absl::OkStatus();
}

// ---- verbs on calls

absl::Status CallManager::WriteStdin(const sandbox::WriteStdinRequest& request) {
  RETURN_IF_ERROR(base::CheckId(request.call_id(), "call_id", /*allow_slash=*/true));
  if (request.data().size() > kStdinWriteMax) {
    return absl::InvalidArgumentError(
        fmt::format("data is {} bytes, the limit is {}: send it in parts", request.data().size(),
                    kStdinWriteMax));
  }
  CallPtr call = Lookup(request.call_id());
  if (call != nullptr) {
    ASSIGN_OR_RETURN(const auto change, sandboxes_->BeginChange(call->sandbox_id()));
    return call->WriteStdin(request.data(), request.eof());
  }
  RETURN_IF_ERROR(log_->FindById(request.call_id()).status());
  return absl::FailedPreconditionError(fmt::format("call {} has ended", request.call_id()));
}

absl::Status CallManager::Resize(const sandbox::ResizeRequest& request) {
  RETURN_IF_ERROR(CheckResize(request));
  const CallPtr call = Lookup(request.call_id());
  if (call != nullptr) {
    ASSIGN_OR_RETURN(const auto change, sandboxes_->BeginChange(call->sandbox_id()));
    return call->Resize(request.rows(), request.columns());
  }
  RETURN_IF_ERROR(log_->FindById(request.call_id()).status());
  return absl::FailedPreconditionError(fmt::format("call {} has ended", request.call_id()));
}

absl::Status CallManager::Signal(const sandbox::SignalRequest& request) {
  RETURN_IF_ERROR(base::CheckId(request.call_id(), "call_id", /*allow_slash=*/true));
  if (!request.cancel() && (request.signal() < 1 || request.signal() > kSignalMax)) {
    return absl::InvalidArgumentError(
        fmt::format("signal {} is not in 1..{}", request.signal(), kSignalMax));
  }
  CallPtr call = Lookup(request.call_id());
  if (call == nullptr) {
    RETURN_IF_ERROR(log_->FindById(request.call_id()).status());
    if (request.cancel()) return absl::OkStatus();  // it has ended
    return absl::FailedPreconditionError(fmt::format("call {} has ended", request.call_id()));
  }
  if (!request.cancel()) {
    ASSIGN_OR_RETURN(const auto change, sandboxes_->BeginChange(call->sandbox_id()));
    return call->Signal(request.signal());
  }
  if (call->Unpark()) {
    call->EndWith(MakeResult(sandbox::OUTCOME_CANCELLED,
                             "cancelled by request while it waited for its caller"));
    return absl::OkStatus();
  }
  return call->Cancel();
}

absl::StatusOr<sandbox::ExecuteRequest> CallManager::RequestOf(const std::string& call_id) {
  RETURN_IF_ERROR(base::CheckId(call_id, "call_id", /*allow_slash=*/true));
  ASSIGN_OR_RETURN(const replay::CallLog::Found found, log_->FindById(call_id));
  return found.intent.request();
}

size_t CallManager::unfinished() {
  absl::MutexLock lock(&mutex_);
  return calls_.size();
}

absl::StatusOr<sandbox::ListCallsResponse> CallManager::ListCalls(const std::string& sandbox_id) {
  RETURN_IF_ERROR(sandboxes_->Get(sandbox_id).status());
  ASSIGN_OR_RETURN(std::vector<replay::CallLog::Found> calls, log_->ListCalls(sandbox_id));
  sandbox::ListCallsResponse response;
  for (const replay::CallLog::Found& found : calls) {
    sandbox::CallSummary* summary = response.add_calls();
    summary->set_call_id(found.intent.call_id());
    summary->set_state(found.result.has_value() ? sandbox::CALL_STATE_COMPLETED
                                                : sandbox::CALL_STATE_RUNNING);
    *summary->mutable_argv() = found.intent.request().argv();
    summary->set_intent_us(found.intent.intent_us());
    if (found.result.has_value()) {
      *summary->mutable_result() = found.result->result();
      summary->set_result_us(found.result->result_us());
    }
  }
  return response;
}

absl::StatusOr<bool> CallManager::Stop(const std::string& sandbox_id) {
  return sandboxes_->Stop(sandbox_id, [&] { EndCallsOf(sandbox_id); });
}

absl::Status CallManager::ForgetSandbox(const std::string& sandbox_id) {
  if (const std::vector<CallPtr> calls = CallsOf(sandbox_id); !calls.empty()) {
    return absl::FailedPreconditionError(fmt::format(
        "call {} of sandbox {} has not ended: stop the sandbox", calls[0]->id(), sandbox_id));
  }
  return sandboxes_->Forget(sandbox_id);
}

absl::StatusOr<sandbox::SnapshotInfo> CallManager::Snapshot(
    const sandbox::SnapshotRequest& request) {
  const SandboxGate::Closed closed(&gate_, request.sandbox_id());
  return sandboxes_->Snapshot(request, closed.quiet(), /*call_id=*/"");
}

absl::StatusOr<sandbox::CreateResponse> CallManager::Fork(const sandbox::ForkRequest& request) {
  {
    const SandboxGate::Closed closed(&gate_, request.sandbox_id());
    if (request.at_call().empty() || (closed.quiet() && sandboxes_->IsAt(request)))
      return sandboxes_->Fork(request, closed.quiet());
  }
  // The log has it all: the sandbox itself may go on meanwhile.
  return sandboxes_->ForkAt(request);
}

absl::StatusOr<sandbox::RestoreResponse> CallManager::Restore(const std::string& sandbox_id) {
  const SandboxGate::Closed closed(&gate_, sandbox_id);
  return sandboxes_->Restore(sandbox_id, closed.quiet());
}

void CallManager::EndCallsOf(const std::string& sandbox_id) {
  for (const CallPtr& call : CallsOf(sandbox_id)) {
    if (call->Unpark()) {
      call->EndWith(MakeResult(sandbox::OUTCOME_CANCELLED, "its sandbox was stopped"));
    } else if (absl::Status status = call->Cancel(); !status.ok()) {
      base::LogWarn(fmt::format("call {} cannot be cancelled: {}", call->id(), status.message()));
    }
  }
  absl::MutexLock lock(&mutex_);
  auto ended = [&]() ABSL_SHARED_LOCKS_REQUIRED(mutex_) {
    for (const auto& [id, call] : calls_) {
      if (call->sandbox_id() == sandbox_id) return false;
    }
    return true;
  };
  if (!mutex_.AwaitWithTimeout(absl::Condition(&ended), options_.stop_grace)) {
    base::LogWarn(
        fmt::format("sandbox {} is removed while calls of it have not ended", sandbox_id));
  }
}

}  // namespace reprise::sandboxd
