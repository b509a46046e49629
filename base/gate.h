// A gate: work enters while it is open; Close() refuses new work and waits until all that entered has left.
#pragma once

#include <cstdint>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"

namespace reprise::base {

class Gate {
 public:
  // False once Close() was called; otherwise Leave() must follow.
  [[nodiscard]] bool Enter();
  void Leave();
  // Refuses new entries and returns when none is left inside. May be called more than once.
  void Close();

 private:
  absl::Mutex mutex_;
  int64_t inside_ ABSL_GUARDED_BY(mutex_) = 0;
  bool closed_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace reprise::base
