// Brings chunks up to this node before anybody asks for them, in the background, a few at a time.
// What cannot be had is left for the reader who needs it to report. Thread-safe.
#pragma once

#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

#include "base/bounded_queue.h"
#include "storage/chunk_store.h"

namespace reprise::sandboxd {

class ChunkPrefetch {
 public:
  // `store` outlives this.
  ChunkPrefetch(storage::ChunkStore* store, int threads);
  ~ChunkPrefetch();
  ChunkPrefetch(const ChunkPrefetch&) = delete;
  ChunkPrefetch& operator=(const ChunkPrefetch&) = delete;

  // False when too much is waiting: the chunk is not fetched ahead then.
  bool Want(const storage::ChunkId& id) { return queue_.TryPush(id); }
  uint64_t fetched() const { return fetched_; }

 private:
  storage::ChunkStore* const store_;
  base::BoundedQueue<storage::ChunkId> queue_;
  std::atomic<bool> stopping_{false};
  std::atomic<uint64_t> fetched_{0};
  std::vector<std::thread> threads_;
};

}  // namespace reprise::sandboxd
