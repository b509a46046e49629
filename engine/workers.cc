#include "engine/workers.h"

#include <algorithm>

namespace reprise::engine {
namespace {

constexpr int kSpins = 4000;

inline void Pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

}  // namespace

Workers::Workers(int threads) {
  for (int i = 1; i < threads; ++i) threads_.emplace_back([this] { Loop(); });
}

Workers::~Workers() {
  stop_.store(true);
  {
    absl::MutexLock lock(&mutex_);
    round_.fetch_add(1);
    wake_.SignalAll();
  }
  for (std::thread& thread : threads_) thread.join();
}

void Workers::Take(absl::FunctionRef<void(int64_t)> task, int64_t count) {
  for (int64_t i = next_.fetch_add(1); i < count; i = next_.fetch_add(1)) task(i);
}

void Workers::Run(int64_t count, absl::FunctionRef<void(int64_t)> task) {
  if (threads_.empty() || count <= 1) {
    for (int64_t i = 0; i < count; ++i) task(i);
    return;
  }
  task_ = &task;
  count_ = count;
  next_.store(0);
  busy_.store(static_cast<int>(threads_.size()));
  {
    absl::MutexLock lock(&mutex_);
    round_.fetch_add(1);
    if (asleep_ > 0) wake_.SignalAll();
  }
  Take(task, count);
  for (int spins = 0; busy_.load() != 0;) {
    // A worker that lost its core must not be starved by this loop.
    if (++spins < kSpins) {
      Pause();
    } else {
      std::this_thread::yield();
    }
  }
}

void Workers::Loop() {
  uint64_t seen = 0;
  while (true) {
    for (int spins = 0; spins < kSpins && round_.load() == seen; ++spins) Pause();
    if (round_.load() == seen) {
      absl::MutexLock lock(&mutex_);
      ++asleep_;
      while (round_.load() == seen) wake_.Wait(&mutex_);
      --asleep_;
    }
    ++seen;
    if (stop_.load()) return;
    Take(*task_, count_);
    busy_.fetch_sub(1);
  }
}

void ParallelFor(Workers* workers, int64_t n, int64_t grain,
                 absl::FunctionRef<void(int64_t, int64_t)> fn) {
  const int64_t pieces =
      workers == nullptr ? 1
                         : std::min<int64_t>(workers->threads(), n / std::max<int64_t>(grain, 1));
  if (pieces <= 1) {
    if (n > 0) fn(0, n);
    return;
  }
  const int64_t size = (n + pieces - 1) / pieces;
  workers->Run(pieces, [&](int64_t i) {
    const int64_t begin = i * size, end = std::min(n, begin + size);
    if (begin < end) fn(begin, end);
  });
}

}  // namespace reprise::engine
