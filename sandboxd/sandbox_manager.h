// The sandboxes of this daemon and their lives: made once per id, found again after a restart,
// thawed when they are needed, lost, stopped. The journal holds what is true; this table holds the
// live ones with what the journal must not hold (secret values).
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "replay/call_log.h"
#include "reprise/sandbox/v1/sandbox.pb.h"
#include "sandboxd/core_metrics.h"
#include "sandboxd/substrate.h"

namespace reprise::sandboxd {

struct SandboxOptions {
  std::vector<std::string> bind_roots;
  size_t sandboxes_max = 10000;  // live ones; RESOURCE_EXHAUSTED above
  std::string boot_id;
  std::function<absl::Status()> journal_health;
};

class SandboxManager {
 public:
  using Tiers = std::map<sandbox::Tier, Substrate*>;
  // All outlive this.
  SandboxManager(SandboxOptions options, replay::CallLog* log, Tiers tiers);

  // Reads the journal and asks each tier for its sandboxes; the ones that it cannot find become
  // LOST.
  absl::Status Recover();

  absl::StatusOr<sandbox::CreateResponse> Create(const sandbox::CreateRequest& request);
  absl::StatusOr<sandbox::Sandbox> Get(const std::string& id);
  // Those that are not stopped, by id.
  absl::StatusOr<sandbox::ListResponse> List();
  // Refuses new calls, runs `end_calls`, removes the sandbox. False when it was stopped before.
  absl::StatusOr<bool> Stop(const std::string& id, const std::function<void()>& end_calls);
  absl::Status Pause(const std::string& id);
  absl::Status Resume(const std::string& id);

  // A sandbox that may be used now; stays valid after a Stop (the tier then answers with errors).
  struct Lease {
    Substrate* substrate = nullptr;
    std::shared_ptr<const sandbox::SandboxSpec> spec;  // with secrets, binds resolved
    std::string id, placement;
    SandboxRef ref() const { return {id, spec.get(), placement}; }
  };
  // Thaws it when it is paused. FAILED_PRECONDITION (stopped, lost, secrets unknown), NOT_FOUND,
  // UNAVAILABLE (its tier does not answer since the restart).
  absl::StatusOr<Lease> Use(const std::string& id);
  // The same for a call that exists: thaws nothing and asks for no secrets. UNAVAILABLE as above.
  absl::StatusOr<Lease> Find(const std::string& id);
  // A call reported the sandbox as lost: asks the tier, and marks it LOST if that agrees.
  void CheckLost(const std::string& id);

  // The tier's default limits; all zero for a tier that this daemon does not have.
  sandbox::Limits DefaultLimits(sandbox::Tier tier) const;
  const Tiers& tiers() const { return tiers_; }

  const SandboxMetrics& metrics() const { return metrics_; }
  // Of this daemon's table: those that are not stopped.
  std::map<std::pair<sandbox::Tier, sandbox::SandboxState>, size_t> Count()
      ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  struct Entry {
    explicit Entry(std::string entry_id) : id(std::move(entry_id)) {}
    const std::string id;
    absl::Mutex verb;  // held by Create, Stop, Pause, Resume, thawing: one at a time
    absl::Mutex mutex;
    replay::journal::SandboxRecord record
        ABSL_GUARDED_BY(mutex);  // state UNSPECIFIED: not made yet, or not made
    std::shared_ptr<const sandbox::SandboxSpec> spec ABSL_GUARDED_BY(mutex);
    bool stopping ABSL_GUARDED_BY(mutex) = false;
    bool secrets_known ABSL_GUARDED_BY(mutex) = true;
    bool unreached ABSL_GUARDED_BY(mutex) = false;  // its tier was not available when it was asked
  };
  using EntryPtr = std::shared_ptr<Entry>;

  EntryPtr Lookup(const std::string& id) ABSL_LOCKS_EXCLUDED(mutex_);
  absl::StatusOr<EntryPtr> Claim(const std::string& id) ABSL_LOCKS_EXCLUDED(mutex_);
  void Drop(const std::string& id) ABSL_LOCKS_EXCLUDED(mutex_);
  absl::StatusOr<Substrate*> TierOf(sandbox::Tier tier) const;
  // Why an id that is not in the table cannot be used.
  absl::Status Absent(const std::string& id);
  absl::Status Adopt(const replay::journal::SandboxRecord& record);
  absl::StatusOr<sandbox::CreateResponse> Existing(const replay::journal::SandboxRecord& record,
                                                   Entry* entry, const sandbox::SandboxSpec& spec);
  absl::StatusOr<sandbox::CreateResponse> Make(Entry* entry, const sandbox::SandboxSpec& spec);
  absl::Status Reach(Entry* entry) ABSL_EXCLUSIVE_LOCKS_REQUIRED(entry->verb);
  absl::Status SetState(Entry* entry, sandbox::SandboxState state, std::string message)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(entry->verb);
  absl::StatusOr<Lease> LeaseOf(Entry* entry) const;
  absl::Status Freeze(const std::string& id, bool freeze);

  const SandboxOptions options_;
  replay::CallLog* const log_;
  const Tiers tiers_;
  SandboxMetrics metrics_;
  std::map<sandbox::Tier, sandbox::Limits> default_limits_;  // constant after construction

  absl::Mutex mutex_;
  absl::flat_hash_map<std::string, EntryPtr> entries_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace reprise::sandboxd
