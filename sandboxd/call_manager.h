// The life of every call: claimed once, written to the journal, started on a tier, followed to its
// end, answered from the journal ever after; and what becomes of the calls that were running when
// the last daemon died. Nothing here waits on the caller's thread: Execute and Attach answer with a
// stream, work runs on bounded pools.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "base/clock.h"
#include "replay/call_log.h"
#include "reprise/sandbox/v1/sandbox.pb.h"
#include "sandboxd/call.h"
#include "sandboxd/call_stream.h"
#include "sandboxd/core_metrics.h"
#include "sandboxd/sandbox_gate.h"
#include "sandboxd/sandbox_manager.h"
#include "sandboxd/worker_pool.h"

namespace reprise::sandboxd {

struct CallOptions {
  size_t calls_max = 4096;    // unfinished calls; RESOURCE_EXHAUSTED above
  size_t readers_max = 8192;  // requests and readers that wait for a thread; UNAVAILABLE above
  size_t admit_threads = 16;  // look-ups and reads of the journal
  size_t start_threads = 64;  // calls that wait for a worker, commit their INTENT and start
  size_t commit_threads =
      32;  // output and results on their way to the journal (they share its commits)
  absl::Duration stop_grace =
      absl::Seconds(5);  // how long Stop lets cancelled calls end before it removes their sandbox
  std::string boot_id;
  std::function<absl::Status()> journal_health;
};

class CallManager {
 public:
  // `log` and `sandboxes` outlive this.
  CallManager(CallOptions options, replay::CallLog* log, SandboxManager* sandboxes);
  ~CallManager();
  CallManager(const CallManager&) = delete;
  CallManager& operator=(const CallManager&) = delete;

  // Takes up every call that has an INTENT and no RESULT: attached, started, run again, or ended,
  // as its owner's answer and its policy say. Before the first Execute, after
  // SandboxManager::Recover.
  absl::Status Recover();

  // Never null; errors come through the stream.
  std::shared_ptr<CallStream> Execute(sandbox::ExecuteRequest request);
  std::shared_ptr<CallStream> Attach(std::string call_id);

  absl::Status WriteStdin(const sandbox::WriteStdinRequest& request);
  absl::Status Signal(const sandbox::SignalRequest& request);
  absl::Status Resize(const sandbox::ResizeRequest& request);
  // As the journal has it: without secrets. NOT_FOUND.
  absl::StatusOr<sandbox::ExecuteRequest> RequestOf(const std::string& call_id);
  const CallMetrics& metrics() const { return metrics_; }
  size_t unfinished() ABSL_LOCKS_EXCLUDED(mutex_);
  absl::StatusOr<sandbox::ListCallsResponse> ListCalls(const std::string& sandbox_id);
  // Ends the sandbox's calls with CANCELLED and removes it. False when it was stopped before.
  absl::StatusOr<bool> Stop(const std::string& sandbox_id);
  // SandboxManager::Forget; FAILED_PRECONDITION also while somebody still follows a call of it.
  absl::Status ForgetSandbox(const std::string& sandbox_id);

  // Calls that come meanwhile wait.
  absl::StatusOr<sandbox::SnapshotInfo> Snapshot(const sandbox::SnapshotRequest& request);
  absl::StatusOr<sandbox::CreateResponse> Fork(const sandbox::ForkRequest& request);
  absl::StatusOr<sandbox::RestoreResponse> Restore(const std::string& sandbox_id);

  // Takes nothing new, ends every stream with UNAVAILABLE, detaches from every call: they live on.
  void Detach();
  // Detach, then waits for the threads: the journal may be closed afterwards. Idempotent.
  void Shutdown();

 private:
  using RequestPtr = std::shared_ptr<const sandbox::ExecuteRequest>;
  using StreamPtr = std::shared_ptr<CallStream>;
  using CallPtr = std::shared_ptr<Call>;

  // ---- admission (call_manager.cc)
  void PostAdmit(RequestPtr request, StreamPtr stream);
  // `waited` runs since the request was posted.
  void Admit(RequestPtr request, StreamPtr stream, const base::Stopwatch& waited);
  void Replay(const StreamPtr& stream, const std::string& call_id, sandbox::Result result);
  void Join(const CallPtr& call, const RequestPtr& request, const StreamPtr& stream);
  absl::StatusOr<CallPtr> Claim(const sandbox::ExecuteRequest& request, bool* mine)
      ABSL_LOCKS_EXCLUDED(mutex_);
  // Reserves, writes INTENT, starts.
  void Begin(const CallPtr& call, const RequestPtr& request, const StreamPtr& stream,
             const base::Stopwatch& waited);
  void GiveUp(const CallPtr& call, const absl::Status& status, const StreamPtr& stream);
  CallPtr Lookup(const std::string& call_id) ABSL_LOCKS_EXCLUDED(mutex_);
  void Forget(const Call& call) ABSL_LOCKS_EXCLUDED(mutex_);
  std::vector<CallPtr> CallsOf(const std::string& sandbox_id) ABSL_LOCKS_EXCLUDED(mutex_);
  void EndCallsOf(const std::string& sandbox_id);
  uint64_t KeptBytes(const sandbox::ExecuteRequest& request,
                     const sandbox::SandboxSpec& spec) const;

  // ---- after a restart (recovery.cc)
  // `request` is the stored one, or a caller's with its secrets (`from_caller`). A call that cannot
  // go on yet is parked; the status then says why.
  absl::Status TakeUp(const CallPtr& call, const replay::journal::CallIntent& intent,
                      const sandbox::ExecuteRequest& request, bool from_caller);
  absl::Status StartHere(const CallPtr& call, const SandboxManager::Lease& lease,
                         const std::string& placement, const sandbox::ExecuteRequest& request);
  // For a call of which nothing ran, or which may run again. `unused`: its reservation, or "".
  absl::Status StartElsewhere(const CallPtr& call, const std::string& sandbox_id,
                              const sandbox::ExecuteRequest& request, bool from_caller,
                              const std::string& unused);
  absl::Status Interrupted(const CallPtr& call, const replay::journal::CallIntent& intent,
                           const sandbox::ExecuteRequest& request, const std::string& why,
                           bool from_caller);
  // Rolls the sandbox back to the snapshot before the call and starts it there.
  absl::Status RestoreAndStart(const CallPtr& call, const replay::journal::CallIntent& intent,
                               const sandbox::ExecuteRequest& request, const std::string& why,
                               bool from_caller);

  const CallOptions options_;
  replay::CallLog* const log_;
  SandboxManager* const sandboxes_;
  CallMetrics metrics_;
  Call::Host host_;  // constant after construction
  SandboxGate gate_;

  absl::Mutex mutex_;
  absl::flat_hash_map<std::string, CallPtr> calls_ ABSL_GUARDED_BY(mutex_);
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;

  WorkerPool admit_pool_, start_pool_, commit_pool_;  // last: their threads use everything above
};

}  // namespace reprise::sandboxd
