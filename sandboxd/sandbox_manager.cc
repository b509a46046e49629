#include "sandboxd/sandbox_manager.h"

#include <algorithm>
#include <utility>

#include <fmt/format.h>

#include "base/clock.h"
#include "base/format.h"
#include "base/ids.h"
#include "base/log.h"
#include "base/status_macros.h"
#include "sandboxd/limits.h"
#include "sandboxd/spec.h"

namespace reprise::sandboxd {

namespace journal = replay::journal;

SandboxManager::SandboxManager(SandboxOptions options, replay::CallLog* log, Tiers tiers)
    : options_(std::move(options)), log_(log), tiers_(std::move(tiers)) {
  for (const auto& [tier, substrate] : tiers_)
    default_limits_[tier] = substrate->default_limits();
}

// ---- the table

SandboxManager::EntryPtr SandboxManager::Lookup(const std::string& id) {
  absl::MutexLock lock(&mutex_);
  auto found = entries_.find(id);
  return found == entries_.end() ? nullptr : found->second;
}

absl::StatusOr<SandboxManager::EntryPtr> SandboxManager::Claim(const std::string& id) {
  absl::MutexLock lock(&mutex_);
  auto found = entries_.find(id);
  if (found != entries_.end()) return found->second;
  if (entries_.size() >= options_.sandboxes_max) {
    return absl::ResourceExhaustedError(
        fmt::format("sandbox {} refused: {} sandboxes exist, which is the limit; stop one first",
                    id, entries_.size()));
  }
  return entries_.emplace(id, std::make_shared<Entry>(id)).first->second;
}

void SandboxManager::Drop(const std::string& id) {
  absl::MutexLock lock(&mutex_);
  entries_.erase(id);
}

uint64_t SandboxManager::MemoryOf(const sandbox::SandboxSpec& spec) const {
  if (spec.tier() == sandbox::TIER_FUNCTION) return 0;
  return ResolveLimits({}, spec.limits(), DefaultLimits(spec.tier())).memory_bytes();
}

absl::StatusOr<std::shared_ptr<void>> SandboxManager::Admit(const std::string& id,
                                                            const sandbox::SandboxSpec& spec) {
  const uint64_t wanted = MemoryOf(spec);
  std::shared_ptr<void> admission;
  if (options_.memory_bytes_max == 0 || wanted == 0) return admission;
  std::vector<EntryPtr> made;
  uint64_t total = 0;
  {
    absl::MutexLock lock(&mutex_);
    making_[id] = wanted;
    for (const auto& [other, bytes] : making_) total += bytes;
    for (const auto& [other, entry] : entries_) {
      if (!making_.contains(other)) made.push_back(entry);
    }
  }
  admission = std::shared_ptr<void>(nullptr, [this, id](void*) {
    absl::MutexLock lock(&mutex_);
    making_.erase(id);
  });
  for (const EntryPtr& entry : made) {
    absl::MutexLock lock(&entry->mutex);
    if (IsLive(entry->record.state())) total += MemoryOf(entry->record.spec());
  }
  if (total <= options_.memory_bytes_max) return admission;
  return absl::ResourceExhaustedError(fmt::format(
      "sandbox {} refused: with its {} bytes the memory limits of all sandboxes would be {} bytes, "
      "above this daemon's bound of {}; stop one first, or ask for less",
      id, wanted, total, options_.memory_bytes_max));
}

absl::StatusOr<Substrate*> SandboxManager::TierOf(sandbox::Tier tier) const {
  auto found = tiers_.find(tier);
  if (found != tiers_.end()) return found->second;
  return absl::UnimplementedError(fmt::format(
      "{} is not a tier of this daemon: ListTiers names those it has", sandbox::Tier_Name(tier)));
}

sandbox::Limits SandboxManager::DefaultLimits(sandbox::Tier tier) const {
  auto found = default_limits_.find(tier);
  return found == default_limits_.end() ? sandbox::Limits() : found->second;
}

absl::Status SandboxManager::Absent(const std::string& id) {
  absl::StatusOr<journal::SandboxRecord> record = log_->GetSandbox(id);
  if (absl::IsNotFound(record.status())) {
    return absl::NotFoundError(fmt::format("sandbox {} does not exist: create it first", id));
  }
  RETURN_IF_ERROR(record.status());
  return absl::FailedPreconditionError(fmt::format("sandbox {} was stopped: create another", id));
}

// ---- after a restart

absl::Status SandboxManager::Recover() {
  ASSIGN_OR_RETURN(std::vector<journal::SandboxRecord> records, log_->ListSandboxes());
  for (const journal::SandboxRecord& record : records) {
    if (record.state() != sandbox::SANDBOX_STATE_STOPPED) RETURN_IF_ERROR(Adopt(record));
    if (IsLive(record.state())) continue;
    const absl::Status dropped = DropUnfinished(record.id(), record.spec().tier());
    if (!dropped.ok()) base::LogWarn(fmt::format("sandbox {}: {}", record.id(), dropped.message()));
  }
  return absl::OkStatus();
}

absl::Status SandboxManager::Adopt(const journal::SandboxRecord& record) {
  auto entry = std::make_shared<Entry>(record.id());
  absl::MutexLock verb(&entry->verb);
  {
    absl::MutexLock lock(&mutex_);
    entries_[record.id()] = entry;
  }
  {
    absl::MutexLock lock(&entry->mutex);
    entry->record = record;
    entry->spec = std::make_shared<sandbox::SandboxSpec>(CurrentSpec(record));
    entry->secrets_known = !HasSecrets(record.spec().env());
    entry->unreached = IsLive(record.state());
  }
  if (!IsLive(record.state())) return absl::OkStatus();
  absl::Status reached = Reach(entry.get());
  if (absl::IsUnavailable(reached)) {
    base::LogWarn(fmt::format("sandbox {} is not reached yet: {}", record.id(), reached.message()));
    return absl::OkStatus();
  }
  // Lost is an answer; a journal that cannot note it down is an error.
  return options_.journal_health();
}

absl::Status SandboxManager::Reach(Entry* entry) {
  journal::SandboxRecord record;
  {
    absl::MutexLock lock(&entry->mutex);
    if (!entry->unreached) return absl::OkStatus();
    record = entry->record;
  }
  absl::Status found;
  std::shared_ptr<const sandbox::SandboxSpec> spec;
  absl::StatusOr<Substrate*> substrate = TierOf(record.spec().tier());
  absl::StatusOr<sandbox::SandboxSpec> resolved = ResolveBinds(CurrentSpec(record), options_.bind_roots);
  if (!substrate.ok()) {
    found = absl::UnavailableError(
        fmt::format("its tier {} is turned off", sandbox::Tier_Name(record.spec().tier())));
  } else if (!resolved.ok()) {
    found = resolved.status();
  } else {
    spec = std::make_shared<sandbox::SandboxSpec>(*std::move(resolved));
    found = (*substrate)->RecoverSandbox({record.id(), spec.get(), record.placement()});
  }
  if (absl::IsUnavailable(found)) return found;
  {
    absl::MutexLock lock(&entry->mutex);
    entry->unreached = false;
    if (found.ok()) entry->spec = std::move(spec);
  }
  if (found.ok()) {
    if (absl::Status status = GoOn(entry); !status.ok())
      base::LogWarn(fmt::format("sandbox {}: {}", record.id(), status.message()));
    return absl::OkStatus();
  }
  base::LogWarn(fmt::format("sandbox {} is lost: {}", record.id(), found.message()));
  RETURN_IF_ERROR(SetState(entry, sandbox::SANDBOX_STATE_LOST, std::string(found.message())));
  return absl::OkStatus();
}

absl::Status SandboxManager::SetState(Entry* entry, sandbox::SandboxState state,
                                      std::string message) {
  return PutRecord(entry, [&](journal::SandboxRecord* record) {
    record->set_state(state);
    record->set_message(std::move(message));
  });
}

absl::Status SandboxManager::PutRecord(Entry* entry,
                                       const std::function<void(journal::SandboxRecord*)>& change) {
  journal::SandboxRecord record;
  {
    absl::MutexLock lock(&entry->mutex);
    record = entry->record;
  }
  // The log counts calls in the record as they begin: take its number, not the one from when this
  // was read.
  if (absl::StatusOr<journal::SandboxRecord> now = log_->GetSandbox(entry->id); now.ok()) {
    record.set_calls(std::max(record.calls(), now->calls()));
  }
  change(&record);
  RETURN_IF_ERROR(log_->PutSandbox(record));
  absl::MutexLock lock(&entry->mutex);
  entry->record = std::move(record);
  return absl::OkStatus();
}

void SandboxManager::CheckLost(const std::string& id) {
  EntryPtr entry = Lookup(id);
  if (entry == nullptr) return;
  absl::MutexLock verb(&entry->verb);
  {
    absl::MutexLock lock(&entry->mutex);
    if (entry->stopping || !IsLive(entry->record.state())) return;
    entry->unreached = true;
  }
  if (absl::Status status = Reach(entry.get()); !status.ok()) {
    base::LogWarn(fmt::format("sandbox {}: {}", id, status.message()));
  }
}

// ---- verbs

absl::StatusOr<sandbox::CreateResponse> SandboxManager::Create(
    const sandbox::CreateRequest& request) {
  std::string id = request.sandbox_id().empty() ? fmt::format("sb-{}", base::RandomHex(8))
                                                : request.sandbox_id();
  RETURN_IF_ERROR(base::CheckId(id, "sandbox_id", /*allow_slash=*/true));
  if (!request.has_spec())
    return absl::InvalidArgumentError("spec is missing: it names at least the tier");
  RETURN_IF_ERROR(CheckSpec(request.spec()));
  return CreateAs(id, request.spec(), {});
}

absl::StatusOr<sandbox::CreateResponse> SandboxManager::CreateAs(const std::string& id,
                                                                 const sandbox::SandboxSpec& spec,
                                                                 const Origin& origin) {
  if (absl::StatusOr<journal::SandboxRecord> stored = log_->GetSandbox(id); stored.ok()) {
    if (EntryPtr entry = Lookup(id); entry != nullptr) {
      absl::MutexLock verb(&entry->verb);
      return Existing(*stored, entry.get(), spec, origin);
    }
    return Existing(*stored, nullptr, spec, origin);
  } else if (!absl::IsNotFound(stored.status())) {
    return stored.status();
  }
  RETURN_IF_ERROR(options_.journal_health());
  ASSIGN_OR_RETURN(EntryPtr entry, Claim(id));
  absl::MutexLock verb(&entry->verb);
  if (Lookup(id) != entry) {
    return absl::UnavailableError(
        fmt::format("sandbox {} was removed, or not made, a moment ago: try again", id));
  }
  // Whoever held the verb before may have made it.
  if (absl::StatusOr<journal::SandboxRecord> stored = log_->GetSandbox(id); stored.ok()) {
    return Existing(*stored, entry.get(), spec, origin);
  }
  const base::Stopwatch watch;
  absl::StatusOr<sandbox::CreateResponse> made = Make(entry.get(), spec, origin);
  SandboxMetrics::OfTier& metrics = metrics_.tiers[static_cast<size_t>(spec.tier()) % kTiers];
  if (made.ok()) {
    metrics.create_seconds.Observe(static_cast<double>(watch.ElapsedMicros()) / 1e6);
  } else {
    metrics.failed.Add();
    Drop(id);
  }
  return made;
}

absl::StatusOr<sandbox::CreateResponse> SandboxManager::Existing(
    const journal::SandboxRecord& record, Entry* entry, const sandbox::SandboxSpec& spec,
    const Origin& origin) {
  // A Create may find what a fork made; a fork only its own.
  if (!origin.sandbox_id.empty() &&
      (record.forked_from() != origin.sandbox_id || record.forked_calls() != origin.calls)) {
    return absl::FailedPreconditionError(
        fmt::format("sandbox {} exists and is no fork of {} after {} calls; choose another id",
                    record.id(), origin.sandbox_id, origin.calls));
  }
  std::string difference = FirstDifference(record.spec(), RedactSpec(spec));
  if (!difference.empty()) {
    return absl::FailedPreconditionError(fmt::format(
        "sandbox {} exists with another spec: {}; choose another id", record.id(), difference));
  }
  sandbox::CreateResponse response;
  response.set_existed(true);
  *response.mutable_sandbox() = ToSandbox(record);
  if (entry == nullptr) return response;
  absl::MutexLock lock(&entry->mutex);
  response.mutable_sandbox()->set_state(entry->record.state());
  response.mutable_sandbox()->set_message(entry->record.message());
  if (!entry->secrets_known) {  // the caller brings again what the journal does not hold
    auto full = std::make_shared<sandbox::SandboxSpec>(*entry->spec);
    *full->mutable_env() = spec.env();
    entry->spec = std::move(full);
    entry->secrets_known = true;
  }
  return response;
}

absl::StatusOr<sandbox::CreateResponse> SandboxManager::Make(Entry* entry,
                                                             const sandbox::SandboxSpec& spec,
                                                             const Origin& origin) {
  ASSIGN_OR_RETURN(Substrate * substrate, TierOf(spec.tier()));
  if (spec.has_network()) RETURN_IF_ERROR(CheckHasNetwork(substrate));
  ASSIGN_OR_RETURN(sandbox::SandboxSpec resolved, ResolveBinds(spec, options_.bind_roots));
  auto full = std::make_shared<const sandbox::SandboxSpec>(std::move(resolved));
  std::vector<sandbox::StepTime> steps;
  const absl::ReaderMutexLock images(&images_mutex_);
  ASSIGN_OR_RETURN(const std::shared_ptr<void> admission, Admit(entry->id, *full));
  ASSIGN_OR_RETURN(std::string placement, substrate->CreateSandbox(entry->id, *full, &steps));
  journal::SandboxRecord record;
  record.set_id(entry->id);
  *record.mutable_spec() = RedactSpec(spec);
  record.set_state(sandbox::SANDBOX_STATE_RUNNING);
  record.set_created_us(base::WallMicros());
  record.set_boot_id(options_.boot_id);
  record.set_placement(placement);
  record.set_forked_from(origin.sandbox_id);
  record.set_forked_calls(origin.calls);
  const SandboxRef made{entry->id, full.get(), placement};
  if (absl::Status ran = RunAll(substrate, made, origin.run_again); !ran.ok()) {
    substrate->StopSandbox(made).IgnoreError();
    return ran;
  }
  base::Stopwatch watch;
  if (absl::Status written = log_->PutSandbox(record); !written.ok()) {
    substrate->StopSandbox(made).IgnoreError();
    return written;
  }
  sandbox::CreateResponse response;
  *response.mutable_sandbox() = ToSandbox(record);
  response.mutable_steps()->Assign(steps.begin(), steps.end());
  sandbox::StepTime* step = response.add_steps();
  step->set_step("journal");
  step->set_duration_us(watch.ElapsedMicros());
  absl::MutexLock lock(&entry->mutex);
  entry->record = std::move(record);
  entry->spec = std::move(full);
  return response;
}

std::map<std::pair<sandbox::Tier, sandbox::SandboxState>, size_t> SandboxManager::Count() {
  std::vector<EntryPtr> entries;
  {
    absl::MutexLock lock(&mutex_);
    for (const auto& [id, entry] : entries_) entries.push_back(entry);
  }
  std::map<std::pair<sandbox::Tier, sandbox::SandboxState>, size_t> counts;
  for (const EntryPtr& entry : entries) {
    absl::MutexLock lock(&entry->mutex);
    // Not made yet, or stopped while this looked.
    if (entry->record.state() == sandbox::SANDBOX_STATE_UNSPECIFIED ||
        entry->record.state() == sandbox::SANDBOX_STATE_STOPPED)
      continue;
    ++counts[{entry->record.spec().tier(), entry->record.state()}];
  }
  return counts;
}

absl::StatusOr<sandbox::Sandbox> SandboxManager::Get(const std::string& id) {
  RETURN_IF_ERROR(base::CheckId(id, "sandbox_id", /*allow_slash=*/true));
  absl::StatusOr<journal::SandboxRecord> record = log_->GetSandbox(id);
  if (absl::IsNotFound(record.status()))
    return absl::NotFoundError(fmt::format("sandbox {} does not exist", id));
  RETURN_IF_ERROR(record.status());
  return ToSandbox(*record);
}

absl::StatusOr<sandbox::ListResponse> SandboxManager::List() {
  ASSIGN_OR_RETURN(std::vector<journal::SandboxRecord> records, log_->ListSandboxes());
  std::sort(records.begin(), records.end(),
            [](const auto& a, const auto& b) { return a.id() < b.id(); });
  sandbox::ListResponse response;
  for (const journal::SandboxRecord& record : records) {
    if (record.state() != sandbox::SANDBOX_STATE_STOPPED)
      *response.add_sandboxes() = ToSandbox(record);
  }
  return response;
}

absl::StatusOr<bool> SandboxManager::Stop(const std::string& id,
                                          const std::function<void()>& end_calls) {
  RETURN_IF_ERROR(base::CheckId(id, "sandbox_id", /*allow_slash=*/true));
  EntryPtr entry = Lookup(id);
  if (entry == nullptr) {
    absl::Status absent = Absent(id);
    if (absl::IsFailedPrecondition(absent)) return false;
    return absent;
  }
  absl::MutexLock verb(&entry->verb);
  bool lost;
  {
    absl::MutexLock lock(&entry->mutex);
    if (entry->record.state() == sandbox::SANDBOX_STATE_STOPPED) return false;
    if (entry->record.state() == sandbox::SANDBOX_STATE_UNSPECIFIED) {
      return absl::NotFoundError(fmt::format("sandbox {} does not exist", id));
    }
    entry->stopping = true;
    lost = entry->record.state() == sandbox::SANDBOX_STATE_LOST;
  }
  end_calls();
  absl::Status stopped;
  if (absl::StatusOr<Lease> lease = LeaseOf(entry.get()); lease.ok()) {
    stopped = lease->substrate->StopSandbox(lease->ref());
  } else {
    stopped = lease.status();
  }
  // What is lost has nothing left to remove; anything else stays until its removal works.
  if (stopped.ok() || lost) stopped = SetState(entry.get(), sandbox::SANDBOX_STATE_STOPPED, "");
  if (!stopped.ok()) {
    absl::MutexLock lock(&entry->mutex);
    entry->stopping = false;
    return stopped;
  }
  Drop(id);
  journal::SandboxRecord record;
  {
    absl::MutexLock lock(&entry->mutex);
    record = entry->record;
  }
  PruneAfter(record);
  return true;
}

absl::Status SandboxManager::Forget(const std::string& id) {
  RETURN_IF_ERROR(Get(id).status());
  // Its place in the table, so that nobody makes it while it goes.
  ASSIGN_OR_RETURN(EntryPtr entry, Claim(id));
  absl::MutexLock verb(&entry->verb);
  ASSIGN_OR_RETURN(const journal::SandboxRecord record, log_->GetSandbox(id));
  if (record.state() != sandbox::SANDBOX_STATE_STOPPED) {
    return absl::FailedPreconditionError(
        fmt::format("sandbox {} is {}: stop it before it is forgotten", id,
                    sandbox::SandboxState_Name(record.state())));
  }
  const absl::Status forgotten = log_->Forget(id);
  Drop(id);
  return forgotten;
}

absl::Status SandboxManager::Pause(const std::string& id) { return Freeze(id, true); }
absl::Status SandboxManager::Resume(const std::string& id) { return Freeze(id, false); }

absl::Status SandboxManager::Freeze(const std::string& id, bool freeze) {
  RETURN_IF_ERROR(base::CheckId(id, "sandbox_id", /*allow_slash=*/true));
  EntryPtr entry = Lookup(id);
  if (entry == nullptr) return Absent(id);
  absl::MutexLock verb(&entry->verb);
  RETURN_IF_ERROR(Reach(entry.get()));
  sandbox::SandboxState wanted =
      freeze ? sandbox::SANDBOX_STATE_PAUSED : sandbox::SANDBOX_STATE_RUNNING;
  {
    absl::MutexLock lock(&entry->mutex);
    if (entry->record.state() == wanted) return absl::OkStatus();
    if (!IsLive(entry->record.state())) {
      return absl::FailedPreconditionError(
          fmt::format("sandbox {} is {}", id, sandbox::SandboxState_Name(entry->record.state())));
    }
  }
  ASSIGN_OR_RETURN(Lease lease, LeaseOf(entry.get()));
  RETURN_IF_ERROR(freeze ? lease.substrate->PauseSandbox(lease.ref())
                         : lease.substrate->ResumeSandbox(lease.ref()));
  return SetState(entry.get(), wanted, "");
}

absl::StatusOr<SandboxManager::Lease> SandboxManager::LeaseOf(Entry* entry) const {
  Lease lease;
  absl::MutexLock lock(&entry->mutex);
  ASSIGN_OR_RETURN(lease.substrate, TierOf(entry->record.spec().tier()));
  lease.spec = entry->spec;
  lease.id = entry->id;
  lease.placement = entry->record.placement();
  return lease;
}

absl::StatusOr<SandboxManager::Lease> SandboxManager::Find(const std::string& id) {
  EntryPtr entry = Lookup(id);
  if (entry == nullptr) return Absent(id);
  {
    absl::MutexLock verb(&entry->verb);
    RETURN_IF_ERROR(Reach(entry.get()));
  }
  return LeaseOf(entry.get());
}

absl::StatusOr<SandboxManager::Lease> SandboxManager::Use(const std::string& id) {
  EntryPtr entry = Lookup(id);
  if (entry == nullptr) return Absent(id);
  bool unreached, paused;
  {
    absl::MutexLock lock(&entry->mutex);
    unreached = entry->unreached;
    paused = entry->record.state() == sandbox::SANDBOX_STATE_PAUSED;
  }
  if (unreached) {
    absl::MutexLock verb(&entry->verb);
    RETURN_IF_ERROR(Reach(entry.get()));
  }
  if (paused) RETURN_IF_ERROR(Resume(id));
  {
    absl::MutexLock lock(&entry->mutex);
    sandbox::SandboxState state = entry->record.state();
    if (entry->stopping || state == sandbox::SANDBOX_STATE_STOPPED) {
      return absl::FailedPreconditionError(
          fmt::format("sandbox {} was stopped: create another", id));
    }
    if (state == sandbox::SANDBOX_STATE_UNSPECIFIED) {
      return absl::NotFoundError(
          fmt::format("sandbox {} does not exist yet: wait for its Create", id));
    }
    if (state == sandbox::SANDBOX_STATE_LOST) {
      return absl::FailedPreconditionError(
          fmt::format("sandbox {} is lost ({}): create another", id, entry->record.message()));
    }
    if (!entry->secrets_known) {
      return absl::FailedPreconditionError(fmt::format(
          "sandbox {} has secret variables that did not outlive the daemon: send its Create again",
          id));
    }
  }
  return LeaseOf(entry.get());
}

}  // namespace reprise::sandboxd
