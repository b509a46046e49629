// Threads for work that blocks (journal commits, tier verbs), behind a bounded queue. Threads start
// when they are first needed and stay until the pool is closed.
#pragma once

#include <cstddef>
#include <deque>
#include <functional>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"

namespace reprise::sandboxd {

class WorkerPool {
 public:
  WorkerPool(size_t threads_max, size_t queue_max);
  ~WorkerPool();
  WorkerPool(const WorkerPool&) = delete;
  WorkerPool& operator=(const WorkerPool&) = delete;

  // False when the queue is full or the pool is closed; `work` was then not taken.
  [[nodiscard]] bool TryPost(std::function<void()> work);
  // Refuses new work, runs what is queued, joins the threads. Not from a thread of the pool.
  void Close();

 private:
  void Run();

  const size_t threads_max_, queue_max_;
  absl::Mutex mutex_;
  std::deque<std::function<void()>> queue_ ABSL_GUARDED_BY(mutex_);
  std::vector<std::thread> threads_ ABSL_GUARDED_BY(mutex_);
  size_t idle_ ABSL_GUARDED_BY(mutex_) = 0;
  bool closed_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace reprise::sandboxd
