#include "storage/memory_tier.h"

namespace reprise::storage {

ChunkContent MemoryTier::Get(const ChunkId& id) {
  absl::MutexLock lock(&mutex_);
  auto found = at_.find(id);
  if (found == at_.end()) return nullptr;
  order_.splice(order_.begin(), order_, found->second);
  return found->second->second;
}

void MemoryTier::Put(const ChunkId& id, ChunkContent content) {
  if (content->size() > bytes_max_) return;
  absl::MutexLock lock(&mutex_);
  if (at_.contains(id)) return;
  bytes_ += content->size();
  order_.emplace_front(id, std::move(content));
  at_[id] = order_.begin();
  while (bytes_ > bytes_max_) {
    bytes_ -= order_.back().second->size();
    at_.erase(order_.back().first);
    order_.pop_back();
  }
}

uint64_t MemoryTier::bytes() const {
  absl::MutexLock lock(&mutex_);
  return bytes_;
}

}  // namespace reprise::storage
