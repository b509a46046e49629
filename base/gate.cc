#include "base/gate.h"

namespace reprise::base {

bool Gate::Enter() {
  absl::MutexLock lock(&mutex_);
  if (closed_) return false;
  ++inside_;
  return true;
}

void Gate::Leave() {
  absl::MutexLock lock(&mutex_);
  --inside_;
}

void Gate::Close() {
  absl::MutexLock lock(&mutex_);
  closed_ = true;
  mutex_.Await(absl::Condition(
      +[](int64_t* inside) { return *inside == 0; }, &inside_));
}

}  // namespace reprise::base
