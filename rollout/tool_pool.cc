#include "rollout/tool_pool.h"

namespace reprise::rollout {

ToolPool::ToolPool(int threads, size_t capacity) : queue_(capacity) {
  for (int i = 0; i < threads; ++i) {
    threads_.emplace_back([this] {
      while (auto task = queue_.Pop()) {
        if (!closing_) (*task)();
      }
    });
  }
}

ToolPool::~ToolPool() {
  closing_ = true;
  queue_.Close();
  for (std::thread& thread : threads_) thread.join();
}

void ToolPool::Run(std::function<void()> task) { queue_.Push(std::move(task)); }

}  // namespace reprise::rollout
