// One reader of one call: Started, then all output from byte 0, then the Result. What the reader
// has not taken yet waits in a small queue; a reader that falls behind is served from the journal
// instead, so that memory stays bounded however slow it is. Offsets make the change from journal to
// live output free of gaps and repeats.
#pragma once

#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "replay/call_log.h"
#include "reprise/sandbox/v1/sandbox.pb.h"
#include "sandboxd/worker_pool.h"

namespace reprise::sandboxd {

namespace sandbox = ::reprise::sandbox::v1;

class CallStream : public std::enable_shared_from_this<CallStream> {
 public:
  // Live output that waits for one reader; above it the reader is sent to the journal. Bytes.
  static constexpr size_t kLiveBytesMax = 256u << 10;
  // Output that one pass over the journal takes out for a reader. Bytes.
  static constexpr size_t kPageBytes = 4u << 20;

  // `log` and `pool` outlive the stream's use: the owner fails every stream before they go.
  CallStream(replay::CallLog* log, WorkerPool* pool) : log_(log), pool_(pool) {}

  // An event, nullopt after the Result, or the error that ended the stream.
  using Event = absl::StatusOr<std::optional<sandbox::ExecuteEvent>>;
  // Asks for the next event; `deliver` runs exactly once, on any thread, perhaps before this
  // returns. REQUIRES: the last `deliver` has run.
  void Next(std::function<void(Event)> deliver) ABSL_LOCKS_EXCLUDED(mutex_);

  // Side of the call. Begin comes first; Finish or Fail last.
  void Begin(std::string_view call_id, bool replayed, bool attached) ABSL_LOCKS_EXCLUDED(mutex_);
  // `data` is in the journal already.
  void Push(sandbox::Stream stream, uint64_t offset, std::string_view data)
      ABSL_LOCKS_EXCLUDED(mutex_);
  void Finish(const sandbox::Result& result) ABSL_LOCKS_EXCLUDED(mutex_);
  // Also what a reader calls when it goes away. The first end counts.
  void Fail(absl::Status status) ABSL_LOCKS_EXCLUDED(mutex_);
  // Failed or gone: nothing sent to it is read.
  bool failed() const ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  // Delivers what can be delivered, if someone waits for it.
  void Pump() ABSL_LOCKS_EXCLUDED(mutex_);
  std::optional<Event> TakeEvent() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  std::optional<sandbox::ExecuteEvent> TakeOutput(std::deque<sandbox::Output>* from)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void ReadPage() ABSL_LOCKS_EXCLUDED(mutex_);

  replay::CallLog* const log_;
  WorkerPool* const pool_;

  mutable absl::Mutex mutex_;
  std::string call_id_ ABSL_GUARDED_BY(mutex_);
  std::function<void(Event)> waiting_ ABSL_GUARDED_BY(mutex_);
  std::optional<sandbox::Started> started_ ABSL_GUARDED_BY(mutex_);
  std::optional<sandbox::Result> result_ ABSL_GUARDED_BY(mutex_);
  absl::Status error_ ABSL_GUARDED_BY(mutex_);
  bool done_ ABSL_GUARDED_BY(mutex_) = false;  // the Result was taken
  // Next byte to deliver, by sandbox::Stream.
  uint64_t cursor_[3] ABSL_GUARDED_BY(mutex_) = {0, 0, 0};
  // Invariant: page_ goes before live_; live_ is only read while not behind_ and not reading_.
  std::deque<sandbox::Output> page_ ABSL_GUARDED_BY(mutex_);
  std::deque<sandbox::Output> live_ ABSL_GUARDED_BY(mutex_);
  size_t live_bytes_ ABSL_GUARDED_BY(mutex_) = 0;
  bool behind_ ABSL_GUARDED_BY(mutex_) = false;   // the journal has output that live_ has not
  bool reading_ ABSL_GUARDED_BY(mutex_) = false;  // a pass over the journal runs
};

}  // namespace reprise::sandboxd
