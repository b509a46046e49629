// One call while it is not finished: takes what the substrate reports, writes it to the journal in
// order on the journal's threads, tells the substrate how far it may forget, and passes it on to
// every reader. Life: claimed -> begun (INTENT durable) -> running -> ended (RESULT durable,
// readers answered, owner released).
#pragma once

#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "base/clock.h"
#include "replay/call_log.h"
#include "reprise/sandbox/v1/sandbox.pb.h"
#include "sandboxd/call_stream.h"
#include "sandboxd/core_metrics.h"
#include "sandboxd/substrate.h"
#include "sandboxd/worker_pool.h"

namespace reprise::sandboxd {

sandbox::Result MakeResult(sandbox::Outcome outcome, std::string message);
// The end of a call that its tier did not start: SANDBOX_LOST when nobody was there to start it
// (UNAVAILABLE), SETUP_FAILED else.
sandbox::Result NotStarted(const absl::Status& why);

class Call : public std::enable_shared_from_this<Call> {
 public:
  // Output that waits for the journal; above it the substrate's thread waits. Substrates stop at
  // about 1 MiB of unacknowledged output, so this is a second line. Bytes.
  static constexpr size_t kPendingBytesMax = 4u << 20;
  // Output in one event of a stream. Bytes.
  static constexpr size_t kEventBytesMax = 64u << 10;
  // How long a verb on a call waits for its start to come back.
  static constexpr absl::Duration kStartWaitMax = absl::Seconds(10);

  // What a call needs from its manager; outlives the call's use (Abandon ends it).
  struct Host {
    replay::CallLog* log = nullptr;
    WorkerPool* journal_pool = nullptr;             // commits
    std::function<void(const Call&)> written;       // its RESULT is durable, nobody knows yet
    std::function<void(const Call&)> forget;        // the call has ended and answered everybody
    std::function<void(const Call&)> sandbox_lost;  // it ended with SANDBOX_LOST
    CallMetrics* metrics = nullptr;
  };

  Call(const Host* host, std::string id, std::string sandbox_id);

  const std::string& id() const { return id_; }
  const std::string& sandbox_id() const { return sandbox_id_; }

  // ---- admission
  bool decided() const ABSL_LOCKS_EXCLUDED(mutex_);
  // Runs `retry` once the claim is decided (begun or given up); at once when it is already.
  void WhenDecided(std::function<void()> retry) ABSL_LOCKS_EXCLUDED(mutex_);
  // INTENT is durable. Output above `kept_bytes` is dropped from its front.
  void MarkBegun(uint64_t kept_bytes, replay::CallLog::Offsets offsets) ABSL_LOCKS_EXCLUDED(mutex_);
  // Nothing was begun, or the journal refuses its records, or the daemon goes: readers get
  // `status`, nothing more is written. A call that runs goes on with its owner, which keeps what
  // was not acknowledged.
  void Abandon(const absl::Status& status) ABSL_LOCKS_EXCLUDED(mutex_);

  // Adds a reader. `attached` tells it that it was not the one that started the call.
  void AddReader(std::shared_ptr<CallStream> stream, bool attached) ABSL_LOCKS_EXCLUDED(mutex_);

  // A parked call waits for a request that brings what the journal may not hold (secrets), or for a
  // tier to come back. Unpark is true for the one caller that takes it up.
  void Park(std::string reason) ABSL_LOCKS_EXCLUDED(mutex_);
  bool Unpark() ABSL_LOCKS_EXCLUDED(mutex_);
  bool parked() const ABSL_LOCKS_EXCLUDED(mutex_);

  // ---- the run
  std::unique_ptr<CallSink> MakeSink();
  // What the sink was given is handled from here on. nullptr: there is no owner, only EndWith.
  void SetRunning(std::unique_ptr<RunningCall> running) ABSL_LOCKS_EXCLUDED(mutex_);
  // Ends a call that no substrate runs.
  void EndWith(sandbox::Result result) ABSL_LOCKS_EXCLUDED(mutex_);

  absl::Status WriteStdin(std::string_view data, bool eof);
  absl::Status Signal(int signal);
  absl::Status Resize(uint32_t rows, uint32_t columns);
  // Its outcome becomes CANCELLED, whatever way it is killed from here on. OK when it has ended
  // already.
  absl::Status Cancel();
  bool cancelled() const ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  class Sink;
  struct Chunk {
    sandbox::Stream stream;
    uint64_t offset;
    std::string data;
  };

  void OnStarted(std::vector<sandbox::StepTime> steps);
  void OnOutput(sandbox::Stream stream, uint64_t offset, std::string_view data);
  void OnEnd(sandbox::Result result);

  void ScheduleDrain() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Drain() ABSL_LOCKS_EXCLUDED(mutex_);
  absl::Status Record(const Chunk& chunk) ABSL_LOCKS_EXCLUDED(mutex_);
  void Complete(sandbox::Result result) ABSL_LOCKS_EXCLUDED(mutex_);
  absl::StatusOr<std::shared_ptr<RunningCall>> Owner() const ABSL_LOCKS_EXCLUDED(mutex_);
  std::vector<std::shared_ptr<CallStream>> Readers() ABSL_LOCKS_EXCLUDED(mutex_);

  const Host* const host_;
  const std::string id_, sandbox_id_;

  mutable absl::Mutex mutex_;
  bool decided_ ABSL_GUARDED_BY(mutex_) = false;
  bool parked_ ABSL_GUARDED_BY(mutex_) = false;
  bool ready_ ABSL_GUARDED_BY(mutex_) =
      false;  // SetRunning or EndWith was called: events may be handled
  bool draining_ ABSL_GUARDED_BY(mutex_) = false;
  bool cancelled_ ABSL_GUARDED_BY(mutex_) = false;
  absl::Status failure_ ABSL_GUARDED_BY(mutex_);  // not OK: it was abandoned
  uint64_t kept_bytes_ ABSL_GUARDED_BY(mutex_) = 0;
  base::Stopwatch since_begun_ ABSL_GUARDED_BY(mutex_);
  uint64_t totals_[3] ABSL_GUARDED_BY(mutex_) = {0, 0, 0};  // bytes in the journal, by stream
  std::vector<std::function<void()>> waiters_ ABSL_GUARDED_BY(mutex_);
  std::vector<std::shared_ptr<CallStream>> readers_ ABSL_GUARDED_BY(mutex_);
  std::shared_ptr<RunningCall> running_ ABSL_GUARDED_BY(mutex_);
  std::deque<Chunk> pending_ ABSL_GUARDED_BY(mutex_);
  size_t pending_bytes_ ABSL_GUARDED_BY(mutex_) = 0;
  std::vector<sandbox::StepTime> steps_ ABSL_GUARDED_BY(mutex_);
  std::optional<sandbox::Result> end_ ABSL_GUARDED_BY(mutex_);     // reported, not yet written
  std::optional<sandbox::Result> result_ ABSL_GUARDED_BY(mutex_);  // written
};

}  // namespace reprise::sandboxd
