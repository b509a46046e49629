// The scheduler's part that keeps KV states within their bound. Who has room is decided by
// priority, then by the order of admission; who must leave goes to disk, those first that wait for
// something outside, and comes back when there is room. What runs first always runs, whatever its
// size.
#include <algorithm>
#include <utility>

#include "rollout/scheduler_parts.h"

namespace reprise::rollout {

void Scheduler::Enter(const LivePtr& live) {
  const auto after = std::find_if(lives_.begin(), lives_.end(), [&](const LivePtr& other) {
    return other->priority() < live->priority();
  });
  lives_.insert(after, live);
}

int64_t Scheduler::KvInUse() const {
  int64_t bytes = 0;
  for (const LivePtr& live : lives_) {
    if (live->sequence) {
      bytes += live->sequence->memory_bytes();
    } else if (live->kv_busy) {
      bytes += engine_->KvBytes(static_cast<int64_t>(live->state.tokens.size()));
    }
  }
  for (const VisitPtr& visit : visits_) {
    if (visit->sequence) bytes += visit->sequence->memory_bytes();
  }
  return bytes;
}

void Scheduler::Preempt(const LivePtr& live) {
  SaveKv(live);
  metrics_.preemptions.Add();
}

void Scheduler::KeepBound() {
  refused_.reset();
  if (options_.kv_bytes_max == 0) return;
  LivePtr first;  // runs whatever happens
  for (const LivePtr& live : lives_) {
    if (first == nullptr && live->sequence && Runnable(live)) first = live;
  }
  for (const bool runnable : {false, true}) {
    for (size_t i = lives_.size(); i-- > 0;) {
      if (KvInUse() <= options_.kv_bytes_max) return;
      const LivePtr& live = lives_[i];
      if (live != first && live->sequence && !live->kv_busy && Runnable(live) == runnable)
        Preempt(live);
    }
  }
}

bool Scheduler::TakeRoom(const LivePtr& live) {
  if (options_.kv_bytes_max == 0) return true;
  // Nobody passes one that waits, or a long one would wait for ever.
  if (refused_.has_value()) return false;
  const int64_t wanted = engine_->KvBytes(static_cast<int64_t>(live->state.tokens.size()) + 1);
  bool alone = guests_running_ == 0;
  for (const bool runnable : {false, true}) {
    for (size_t i = lives_.size(); i-- > 0;) {
      if (KvInUse() + wanted <= options_.kv_bytes_max) return true;
      const LivePtr& other = lives_[i];
      if (!other->sequence || other->kv_busy) continue;
      const bool runs = Runnable(other);
      if (runs == runnable && (!runs || other->priority() < live->priority())) {
        Preempt(other);
      } else if (runs) {
        alone = false;
      }
    }
  }
  if (alone || KvInUse() + wanted <= options_.kv_bytes_max) return true;
  refused_ = live->priority();
  return false;
}

}  // namespace reprise::rollout
