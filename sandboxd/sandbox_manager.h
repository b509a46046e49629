// The sandboxes of this daemon and their lives: made once per id, found again after a restart,
// thawed when they are needed, lost, stopped. The journal holds what is true; this table holds the
// live ones with what the journal must not hold (secret values).
#pragma once

#include <atomic>
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
#include "sandboxd/limits.h"
#include "sandboxd/substrate.h"

namespace reprise::sandboxd {

// Names of images that the daemon chooses for snapshots begin with this; no others do.
inline constexpr std::string_view kSnapshotImagePrefix = "snapshots/";

// How the ids of snapshots begin that nobody asked for as such.
inline constexpr char kCallSnapshots[] = "call/";
inline constexpr char kForkSnapshots[] = "fork/";
inline constexpr char kRestoreSnapshots[] = "restored/";

struct SandboxOptions {
  std::vector<std::string> bind_roots;
  size_t sandboxes_max = kSandboxesMax;  // that are not stopped; RESOURCE_EXHAUSTED above
  // Of the memory limits of all live sandboxes together, bytes; RESOURCE_EXHAUSTED above; 0 = no
  // bound. The function tier's calls are bounded by its workers.
  uint64_t memory_bytes_max = 0;
  // Snapshots that a sandbox keeps of those that nobody asked for; at least the newest stays.
  size_t snapshots_kept = 2;
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
  // Removes a stopped sandbox and its calls from the journal. NOT_FOUND; FAILED_PRECONDITION when
  // it is not stopped, when a call of it has no result, or when a snapshot of it is kept.
  absl::Status Forget(const std::string& id);
  absl::Status Pause(const std::string& id);
  absl::Status Resume(const std::string& id);

  // ---- networks (networks.cc)
  // In force, and in the journal, on return. UNIMPLEMENTED where the tier has none.
  absl::Status SetNetwork(const sandbox::SetNetworkRequest& request);
  absl::StatusOr<sandbox::GetNetworkResponse> GetNetwork(const std::string& id);

  // ---- snapshots (snapshots.cc)
  // `quiet`: no call of the sandbox is running, and none begins before this returns. `call_id`: the
  // call that it is taken for, "" by request.
  absl::StatusOr<sandbox::SnapshotInfo> Snapshot(const sandbox::SnapshotRequest& request,
                                                 bool quiet, const std::string& call_id);
  absl::StatusOr<sandbox::ListSnapshotsResponse> ListSnapshots(const std::string& id);
  // Those of every sandbox, stopped ones too, that somebody asked for.
  absl::StatusOr<std::vector<sandbox::SnapshotInfo>> AllSnapshots();
  absl::StatusOr<sandbox::CreateResponse> Fork(const sandbox::ForkRequest& request, bool quiet);
  // ---- forks from a place in the log (fork.cc)
  // The sandbox as it was after request.at_call, from snapshots and the log alone.
  absl::StatusOr<sandbox::CreateResponse> ForkAt(const sandbox::ForkRequest& request);
  // The sandbox is live, its tier takes snapshots, and the last call that was begun in it is
  // request.at_call.
  bool IsAt(const sandbox::ForkRequest& request);
  // The state before a call that may be rolled back; none of its sandbox's calls runs. Returns the
  // snapshot's id; "" for a tier that keeps nothing between calls.
  absl::StatusOr<std::string> SnapshotBefore(const std::string& id, const std::string& call_id);
  // Something is about to change the sandbox that the log does not hold; durable on return. To be
  // kept until it is done.
  absl::StatusOr<std::shared_ptr<void>> BeginChange(const std::string& id);

  // ---- images (image_pins.cc)
  // Runs `remove` unless the image must stay: a sandbox was made from it, or may be made again from
  // it (FAILED_PRECONDITION). No sandbox is made meanwhile.
  absl::Status RemoveImage(const std::string& image, const std::function<absl::Status()>& remove)
      ABSL_LOCKS_EXCLUDED(images_mutex_);

  // ---- sandboxes that are made again (restore.cc)
  absl::StatusOr<sandbox::RestoreResponse> Restore(const std::string& id, bool quiet);
  // To a snapshot of it that was taken between two calls, lost or not; what runs in it dies.
  // FAILED_PRECONDITION: it changed since, and not by calls. UNAVAILABLE: not now.
  absl::Status RollBack(const std::string& id, const std::string& snapshot_id);
  // Calls that are being run again are given up.
  void Stopping() { stopping_ = true; }

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
    int changes ABSL_GUARDED_BY(mutex) = 0;         // under way, that the log does not hold
    uint64_t changes_begun ABSL_GUARDED_BY(mutex) = 0;
  };
  using EntryPtr = std::shared_ptr<Entry>;

  class Change;

  // What a new sandbox begins as.
  struct Origin {
    std::string sandbox_id;  // as that one was; "" = as its image says
    uint64_t calls = 0;      // after so many of its calls
    std::vector<replay::CallLog::Found> run_again;
  };

  EntryPtr Lookup(const std::string& id) ABSL_LOCKS_EXCLUDED(mutex_);
  absl::StatusOr<EntryPtr> Claim(const std::string& id) ABSL_LOCKS_EXCLUDED(mutex_);
  void Drop(const std::string& id) ABSL_LOCKS_EXCLUDED(mutex_);
  // Room for the memory of a sandbox that is about to be made; to be kept until it is, or is not.
  absl::StatusOr<std::shared_ptr<void>> Admit(const std::string& id,
                                              const sandbox::SandboxSpec& spec)
      ABSL_LOCKS_EXCLUDED(mutex_);
  uint64_t MemoryOf(const sandbox::SandboxSpec& spec) const;
  absl::StatusOr<Substrate*> TierOf(sandbox::Tier tier) const;
  // Why an id that is not in the table cannot be used.
  absl::Status Absent(const std::string& id);
  absl::Status Adopt(const replay::journal::SandboxRecord& record);
  absl::StatusOr<sandbox::CreateResponse> CreateAs(const std::string& id,
                                                   const sandbox::SandboxSpec& spec,
                                                   const Origin& origin);
  absl::StatusOr<sandbox::CreateResponse> Existing(const replay::journal::SandboxRecord& record,
                                                   Entry* entry, const sandbox::SandboxSpec& spec,
                                                   const Origin& origin);
  absl::StatusOr<sandbox::CreateResponse> Make(Entry* entry, const sandbox::SandboxSpec& spec,
                                               const Origin& origin);
  // Runs calls of a log again in a sandbox that is nobody's yet.
  absl::Status RunAll(Substrate* substrate, const SandboxRef& made,
                      const std::vector<replay::CallLog::Found>& calls);
  // Calls of the sandbox's log up to request.at_call.
  absl::StatusOr<uint64_t> CallsUpTo(const sandbox::ForkRequest& request);
  // The calls of another log that a sandbox began with and that are not in its image.
  absl::StatusOr<std::vector<replay::CallLog::Found>> Inherited(
      const replay::journal::SandboxRecord& record);
  absl::Status Reach(Entry* entry) ABSL_EXCLUSIVE_LOCKS_REQUIRED(entry->verb);
  // Changes the record, durably.
  absl::Status PutRecord(Entry* entry,
                         const std::function<void(replay::journal::SandboxRecord*)>& change)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(entry->verb);
  // A tier that has no network refuses a spec that asks for one.
  static absl::Status CheckHasNetwork(Substrate* substrate);
  absl::Status SetState(Entry* entry, sandbox::SandboxState state, std::string message)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(entry->verb);
  absl::StatusOr<Lease> LeaseOf(Entry* entry) const;
  absl::Status Freeze(const std::string& id, bool freeze);
  absl::StatusOr<sandbox::SnapshotInfo> SnapshotEntry(Entry* entry,
                                                      const sandbox::SnapshotRequest& request,
                                                      bool quiet, const std::string& call_id)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(entry->verb);
  // A sandbox that is not stopped and was made from this image, or "".
  std::string UserOf(const std::string& image) ABSL_LOCKS_EXCLUDED(mutex_);
  absl::Status RemoveUnused(const std::string& image,
                            const std::vector<replay::journal::SnapshotRecord>& records,
                            const std::function<absl::Status()>& remove)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(images_mutex_);
  // Removes a sandbox's snapshots that nobody asked for and nobody needs.
  void Prune(const std::string& id, sandbox::Tier tier) ABSL_LOCKS_EXCLUDED(images_mutex_);
  void PruneAfter(const replay::journal::SandboxRecord& stopped);
  // Makes the sandbox again from `image` ("" = its own), runs the calls, and puts it into the place
  // of what was there.
  absl::Status MakeAgain(Entry* entry, const std::string& image,
                         const std::vector<replay::CallLog::Found>& calls)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(entry->verb);
  absl::Status CheckFree(Substrate* substrate, const std::string& image) const;
  // What the last daemon left of snapshots that it did not finish.
  absl::Status DropUnfinished(const std::string& id, sandbox::Tier tier);
  absl::Status GoOn(Entry* entry) ABSL_EXCLUSIVE_LOCKS_REQUIRED(entry->verb);

  const SandboxOptions options_;
  replay::CallLog* const log_;
  const Tiers tiers_;
  SandboxMetrics metrics_;
  std::map<sandbox::Tier, sandbox::Limits> default_limits_;  // constant after construction

  std::atomic<bool> stopping_ = false;
  // Held for reading while a sandbox is made from an image, for writing while one is removed. Taken
  // after an entry's verb.
  absl::Mutex images_mutex_;
  absl::Mutex mutex_;
  absl::flat_hash_map<std::string, EntryPtr> entries_ ABSL_GUARDED_BY(mutex_);
  absl::flat_hash_map<std::string, uint64_t> making_ ABSL_GUARDED_BY(mutex_);  // memory, bytes
};

}  // namespace reprise::sandboxd
