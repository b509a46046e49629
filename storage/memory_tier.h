// Contents of chunks in memory, within a bound, the least recently used going first. Thread-safe.
#pragma once

#include <list>
#include <memory>
#include <string>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/synchronization/mutex.h"
#include "storage/chunk.h"

namespace reprise::storage {

using ChunkContent = std::shared_ptr<const std::string>;

class MemoryTier {
 public:
  explicit MemoryTier(uint64_t bytes_max) : bytes_max_(bytes_max) {}

  // nullptr when it is not here.
  ChunkContent Get(const ChunkId& id);
  // Content larger than the whole bound is not kept.
  void Put(const ChunkId& id, ChunkContent content);
  uint64_t bytes() const;

 private:
  using Order = std::list<std::pair<ChunkId, ChunkContent>>;

  const uint64_t bytes_max_;
  mutable absl::Mutex mutex_;
  Order order_ ABSL_GUARDED_BY(mutex_);  // newest first
  absl::flat_hash_map<ChunkId, Order::iterator> at_ ABSL_GUARDED_BY(mutex_);
  uint64_t bytes_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace reprise::storage
