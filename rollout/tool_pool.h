// A fixed number of threads on which trajectories wait for sandboxes, so that the engine never
// does.
#pragma once

#include <atomic>
#include <functional>
#include <thread>
#include <vector>

#include "base/bounded_queue.h"

namespace reprise::rollout {

class ToolPool {
 public:
  // `capacity`: tasks that may wait; Run() waits above it.
  ToolPool(int threads, size_t capacity);
  // Drops tasks that have not begun, waits for those that have.
  ~ToolPool();
  void Run(std::function<void()> task);

 private:
  base::BoundedQueue<std::function<void()>> queue_;
  std::atomic<bool> closing_{false};
  std::vector<std::thread> threads_;
};

}  // namespace reprise::rollout
