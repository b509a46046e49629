#include "sandboxd/container/id_pool.h"

#include <fmt/format.h>

#include <random>

#include "sandboxd/container/idmap.h"

namespace reprise::sandboxd {

IdPool::IdPool() : next_(std::random_device()() % kMappedSandboxesMax) {}

absl::StatusOr<uint32_t> IdPool::Take() {
  absl::MutexLock lock(&mutex_);
  for (uint32_t tried = 0; tried < kMappedSandboxesMax; ++tried) {
    const uint32_t base_id = kFirstMappedId + next_ * kIdsPerSandbox;
    next_ = (next_ + 1) % kMappedSandboxesMax;
    if (taken_.insert(base_id).second) return base_id;
  }
  return absl::ResourceExhaustedError(
      fmt::format("{} containers have user ids already: stop some", kMappedSandboxesMax));
}

void IdPool::Reserve(uint32_t base_id) {
  if (base_id < kFirstMappedId || (base_id - kFirstMappedId) % kIdsPerSandbox != 0) return;
  absl::MutexLock lock(&mutex_);
  taken_.insert(base_id);
}

void IdPool::Return(uint32_t base_id) {
  absl::MutexLock lock(&mutex_);
  taken_.erase(base_id);
}

}  // namespace reprise::sandboxd
