// Watches of directories, for whoever asked: one thread reads all of them, and what a caller has
// not taken waits in a queue of its own, which tells an overflow instead of growing. A watch is of
// the moment: it ends with the daemon, its sandbox or its caller.
#pragma once

#include <atomic>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "base/fd.h"
#include "sandboxd/sandbox_manager.h"

namespace reprise::sandboxd {

inline constexpr size_t kWatchesMax = 4096;          // of the daemon; RESOURCE_EXHAUSTED above
inline constexpr size_t kWatchesPerSandboxMax = 64;  // the same
inline constexpr size_t kWatchEventsMax = 8192;      // that wait for one caller

// The events of one watch, STARTED first.
class WatchStream {
 public:
  explicit WatchStream(std::string sandbox_id) : sandbox_id_(std::move(sandbox_id)) {}

  // An event, or the error that ended the watch, after all events before it.
  using Event = absl::StatusOr<sandbox::WatchEvent>;
  // Asks for the next event; `deliver` runs exactly once, on any thread, perhaps before this
  // returns. REQUIRES: the last `deliver` has run.
  void Next(std::function<void(Event)> deliver) ABSL_LOCKS_EXCLUDED(mutex_);
  // All that wait; the error once there are none and the watch has ended.
  absl::StatusOr<std::vector<sandbox::WatchEvent>> TakeAll() ABSL_LOCKS_EXCLUDED(mutex_);

  // Side of the manager, and of a caller that goes away: the first end counts.
  void Push(sandbox::WatchEvent event) ABSL_LOCKS_EXCLUDED(mutex_);
  void End(absl::Status status) ABSL_LOCKS_EXCLUDED(mutex_);
  bool ended() const ABSL_LOCKS_EXCLUDED(mutex_);
  const std::string& sandbox_id() const { return sandbox_id_; }

 private:
  void Pump() ABSL_LOCKS_EXCLUDED(mutex_);

  const std::string sandbox_id_;
  mutable absl::Mutex mutex_;
  std::deque<sandbox::WatchEvent> pending_ ABSL_GUARDED_BY(mutex_);
  std::function<void(Event)> waiting_ ABSL_GUARDED_BY(mutex_);
  absl::Status end_ ABSL_GUARDED_BY(mutex_);  // not OK: it has ended
};

class WatchManager {
 public:
  // `sandboxes` outlives this.
  static absl::StatusOr<std::unique_ptr<WatchManager>> Make(SandboxManager* sandboxes);
  ~WatchManager();
  WatchManager(const WatchManager&) = delete;
  WatchManager& operator=(const WatchManager&) = delete;

  // In force when it returns; blocks. Errors of SandboxManager::Use and of the tier, which say that
  // it cannot watch or that there is no such directory; RESOURCE_EXHAUSTED for too many.
  absl::StatusOr<std::shared_ptr<WatchStream>> Open(const std::string& sandbox_id,
                                                    const std::string& path, bool recursive);
  // The caller has gone.
  void Close(const std::shared_ptr<WatchStream>& stream);
  // Ends every watch with UNAVAILABLE; none is opened any more. Idempotent.
  void Shutdown();

 private:
  struct Entry {
    std::shared_ptr<WatchStream> stream;
    std::unique_ptr<FileWatch> watch;  // read by the loop's thread
  };
  using EntryPtr = std::shared_ptr<Entry>;

  explicit WatchManager(SandboxManager* sandboxes) : sandboxes_(sandboxes) {}
  absl::Status Start();
  absl::Status CheckRoom(const std::string& sandbox_id) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Loop();
  // False when it has ended. `*more`: it may have events although its descriptor is not readable.
  static bool Read(Entry& entry, bool* more);
  void Forget(uint64_t id) ABSL_LOCKS_EXCLUDED(mutex_);
  void Wake();

  SandboxManager* const sandboxes_;
  base::UniqueFd epoll_, wake_;
  std::atomic<bool> stop_{false};
  absl::Mutex mutex_;
  uint64_t next_id_ ABSL_GUARDED_BY(mutex_) = 1;
  std::map<uint64_t, EntryPtr> entries_ ABSL_GUARDED_BY(mutex_);
  // Not read yet: their first events may have been taken from the socket already.
  std::vector<uint64_t> fresh_ ABSL_GUARDED_BY(mutex_);
  std::thread thread_;
};

}  // namespace reprise::sandboxd
