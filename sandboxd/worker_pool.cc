#include "sandboxd/worker_pool.h"

#include <utility>

namespace reprise::sandboxd {

WorkerPool::WorkerPool(size_t threads_max, size_t queue_max)
    : threads_max_(threads_max), queue_max_(queue_max) {}

WorkerPool::~WorkerPool() { Close(); }

bool WorkerPool::TryPost(std::function<void()> work) {
  absl::MutexLock lock(&mutex_);
  if (closed_ || queue_.size() >= queue_max_) return false;
  queue_.push_back(std::move(work));
  if (idle_ < queue_.size() && threads_.size() < threads_max_)
    threads_.emplace_back([this] { Run(); });
  return true;
}

void WorkerPool::Run() {
  absl::MutexLock lock(&mutex_);
  auto ready = [this]() ABSL_SHARED_LOCKS_REQUIRED(mutex_) { return closed_ || !queue_.empty(); };
  while (true) {
    ++idle_;
    mutex_.Await(absl::Condition(&ready));
    --idle_;
    if (queue_.empty()) return;  // closed and drained
    std::function<void()> work = std::move(queue_.front());
    queue_.pop_front();
    mutex_.Unlock();
    work();
    work = nullptr;  // what it captured goes before the lock is taken again
    mutex_.Lock();
  }
}

void WorkerPool::Close() {
  std::vector<std::thread> threads;
  {
    absl::MutexLock lock(&mutex_);
    closed_ = true;
    threads.swap(threads_);
  }
  for (std::thread& thread : threads) thread.join();
}

}  // namespace reprise::sandboxd
