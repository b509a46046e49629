// Forks from a place in a sandbox's log: the new sandbox begins with the newest snapshot that is
// not after that place, or with the image, and the calls from there on run again in it, each
// compared with the log. Its record says whose calls those were, so that it can be made again
// itself.
#include <optional>
#include <utility>

#include <fmt/format.h>

#include "base/format.h"
#include "base/ids.h"
#include "base/status_macros.h"
#include "sandboxd/limits.h"
#include "sandboxd/rerun.h"
#include "sandboxd/sandbox_manager.h"
#include "sandboxd/spec.h"

namespace reprise::sandboxd {

namespace journal = replay::journal;
using Calls = std::vector<replay::CallLog::Found>;

absl::StatusOr<uint64_t> SandboxManager::CallsUpTo(const sandbox::ForkRequest& request) {
  absl::StatusOr<replay::CallLog::Found> call = log_->FindById(request.at_call());
  RETURN_IF_ERROR(call.status());
  if (call->intent.sandbox_id() != request.sandbox_id()) {
    return absl::InvalidArgumentError(fmt::format("call {} is of sandbox {}, not of {}",
                                                  request.at_call(), call->intent.sandbox_id(),
                                                  request.sandbox_id()));
  }
  return call->intent.ordinal() + 1;
}

bool SandboxManager::IsAt(const sandbox::ForkRequest& request) {
  EntryPtr entry = Lookup(request.sandbox_id());
  if (entry == nullptr) return false;
  Substrate* substrate = nullptr;
  {
    absl::MutexLock lock(&entry->mutex);
    if (entry->stopping || !IsLive(entry->record.state())) return false;
    absl::StatusOr<Substrate*> tier = TierOf(entry->record.spec().tier());
    if (!tier.ok()) return false;
    substrate = *tier;
  }
  const sandbox::TierInfo tier = substrate->Describe();
  const auto can = tier.verbs().find("snapshot");
  if (can == tier.verbs().end() || can->second != "yes") return false;
  const absl::StatusOr<uint64_t> wanted = CallsUpTo(request);
  const absl::StatusOr<uint64_t> begun = log_->CountCalls(request.sandbox_id());
  return wanted.ok() && begun.ok() && *wanted == *begun;
}

absl::StatusOr<Calls> SandboxManager::Inherited(const journal::SandboxRecord& record) {
  Calls calls;
  if (record.forked_from().empty()) return calls;
  absl::StatusOr<journal::SandboxRecord> origin = log_->GetSandbox(record.forked_from());
  if (absl::IsNotFound(origin.status())) {
    return absl::FailedPreconditionError(
        fmt::format("sandbox {} began as {} was, which is forgotten with its calls", record.id(),
                    record.forked_from()));
  }
  RETURN_IF_ERROR(origin.status());
  // Where it began with a snapshot of its origin, that holds the calls before.
  std::optional<uint64_t> first;
  ASSIGN_OR_RETURN(const auto snapshots, log_->ListSnapshots(origin->id()));
  for (const journal::SnapshotRecord& snapshot : snapshots) {
    if (snapshot.image() == record.spec().image()) first = snapshot.calls();
  }
  if (!first.has_value()) {
    ASSIGN_OR_RETURN(calls, Inherited(*origin));
  }
  ASSIGN_OR_RETURN(Calls own, log_->ListCalls(origin->id()));
  for (replay::CallLog::Found& call : own) {
    const uint64_t ordinal = call.intent.ordinal();
    if (ordinal >= first.value_or(0) && ordinal < record.forked_calls())
      calls.push_back(std::move(call));
  }
  return calls;
}

absl::StatusOr<sandbox::CreateResponse> SandboxManager::ForkAt(
    const sandbox::ForkRequest& request) {
  RETURN_IF_ERROR(base::CheckId(request.sandbox_id(), "sandbox_id", /*allow_slash=*/true));
  const std::string new_id =
      request.new_id().empty() ? fmt::format("sb-{}", base::RandomHex(8)) : request.new_id();
  RETURN_IF_ERROR(base::CheckId(new_id, "new_id", /*allow_slash=*/true));
  ASSIGN_OR_RETURN(const journal::SandboxRecord source, log_->GetSandbox(request.sandbox_id()));
  ASSIGN_OR_RETURN(const uint64_t wanted, CallsUpTo(request));
  if (source.unlogged()) {
    return absl::FailedPreconditionError(fmt::format(
        "sandbox {} cannot be made as it was: it was changed in a way that the log does "
        "not hold (files written from outside, or input given to a running call)",
        source.id()));
  }
  if (HasSecrets(source.spec().env())) {
    return absl::FailedPreconditionError(fmt::format(
        "sandbox {} cannot be made as it was: it has secret variables, which the log does not hold",
        source.id()));
  }
  ASSIGN_OR_RETURN(Substrate* const substrate, TierOf(source.spec().tier()));
  Origin origin;
  origin.sandbox_id = source.id();
  origin.calls = wanted;
  sandbox::SandboxSpec spec = CurrentSpec(source);
  Merge(request, &spec);
  if (substrate->KeepsState()) {
    std::optional<journal::SnapshotRecord> newest;
    ASSIGN_OR_RETURN(const auto snapshots, log_->ListSnapshots(source.id()));
    for (const journal::SnapshotRecord& snapshot : snapshots) {
      if (snapshot.quiet() && !snapshot.digest().empty() && snapshot.calls() <= wanted)
        newest = snapshot;
    }
    if (newest.has_value()) spec.set_image(newest->image());
    journal::SandboxRecord as_forked;
    as_forked.set_id(new_id);
    *as_forked.mutable_spec() = spec;
    as_forked.set_forked_from(source.id());
    as_forked.set_forked_calls(wanted);
    ASSIGN_OR_RETURN(origin.run_again, Inherited(as_forked));
    std::erase_if(origin.run_again, [](const auto& call) {
      return call.result.has_value() && LeftNothing(call.result->result());
    });
  }
  return CreateAs(new_id, spec, origin);
}

}  // namespace reprise::sandboxd
