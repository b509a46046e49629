// The compute threads of one engine. The caller works too; waiting threads spin briefly before they
// sleep, because the pieces of a decode step are microseconds apart.
#pragma once

#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/functional/function_ref.h"
#include "absl/synchronization/mutex.h"

namespace reprise::engine {

class Workers {
 public:
  // `threads` counts the caller: 1 starts none.
  explicit Workers(int threads);
  ~Workers();
  Workers(const Workers&) = delete;
  Workers& operator=(const Workers&) = delete;

  int threads() const { return static_cast<int>(threads_.size()) + 1; }

  // Runs task(0) .. task(count - 1), each once, and returns when all are done. One caller at a
  // time; not from a task.
  void Run(int64_t count, absl::FunctionRef<void(int64_t)> task);

 private:
  void Loop();
  void Take(absl::FunctionRef<void(int64_t)> task, int64_t count);

  std::vector<std::thread> threads_;
  std::atomic<uint64_t> round_{0};
  std::atomic<int64_t> next_{0};
  std::atomic<int> busy_{0};
  const absl::FunctionRef<void(int64_t)>* task_ = nullptr;  // of the round; published by round_
  int64_t count_ = 0;
  absl::Mutex mutex_;
  absl::CondVar wake_;
  int asleep_ ABSL_GUARDED_BY(mutex_) = 0;
  std::atomic<bool> stop_{false};
};

// Cuts [0, n) into pieces of at least `grain` and runs fn(begin, end) on them; on the caller alone
// when `workers` is nullptr. Results must not depend on the cuts.
void ParallelFor(Workers* workers, int64_t n, int64_t grain,
                 absl::FunctionRef<void(int64_t, int64_t)> fn);

}  // namespace reprise::engine
