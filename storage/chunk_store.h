// Content-addressed chunks in three tiers: memory, local disk, cold. A chunk is verified against
// its id whenever it comes out of a tier below memory; readers of one chunk that come at the same
// time fetch it once. Several processes may use one directory (an importer and an image server):
// what they share is files.
//
// On local disk a chunk is either kept (this node is all that has it: written by an import without
// a cold tier, removed only by Collect) or a copy (the cold tier has it; evicted by last use).
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "storage/chunk.h"
#include "storage/cold_tier.h"
#include "storage/memory_tier.h"
#include "storage/object_dir.h"

namespace reprise::storage {

struct ChunkStoreOptions {
  std::string dir;                        // made when it is missing
  uint64_t disk_bytes_max = 50ull << 30;  // of kept chunks and copies together, as stored
  uint64_t memory_bytes_max = 64ull << 20;
  std::shared_ptr<ColdTier> cold;  // nullptr: none
};

// What reads found where, since the store was opened by this process.
struct ChunkCounters {
  std::atomic<uint64_t> memory_hits{0}, disk_hits{0}, cold_hits{0};
  std::atomic<uint64_t> joined{0};      // waited for another reader's fetch
  std::atomic<uint64_t> lost{0};        // in no tier, or damaged in the last one
  std::atomic<uint64_t> damaged{0};     // objects that failed their check and were not used
  std::atomic<uint64_t> cold_bytes{0};  // as transferred from the cold tier
  std::atomic<uint64_t> evicted{0};     // copies
};

class ChunkStore {
 public:
  static absl::StatusOr<std::unique_ptr<ChunkStore>> Open(ChunkStoreOptions options);
  ChunkStore(const ChunkStore&) = delete;
  ChunkStore& operator=(const ChunkStore&) = delete;

  // The content of a chunk. DATA_LOSS names it when no tier has it whole; UNAVAILABLE when the cold
  // tier does not answer. Thread-safe.
  absl::StatusOr<ChunkContent> Get(const ChunkId& id);

  // Chunks that become durable together.
  class Writer {
   public:
    // Content of 1..kChunkBytesMax bytes. Thread-safe. RESOURCE_EXHAUSTED: the disk's bound.
    absl::StatusOr<ChunkId> Put(std::string_view content);
    // Durable in the cold tier where there is one, else on local disk. Without it nothing of the
    // batch stays on local disk. To be called once, after the last Put.
    absl::Status Commit();
    uint64_t new_bytes() const { return new_bytes_; }  // as stored, of chunks that were not there
    uint64_t new_chunks() const { return new_chunks_; }

   private:
    friend class ChunkStore;
    Writer(ChunkStore* store, std::unique_ptr<ObjectDir::Batch> batch)
        : store_(store), batch_(std::move(batch)) {}
    ChunkStore* const store_;
    const std::unique_ptr<ObjectDir::Batch> batch_;
    std::atomic<uint64_t> new_bytes_{0}, new_chunks_{0};
  };
  absl::StatusOr<std::unique_ptr<Writer>> Begin();

  struct Collected {
    uint64_t chunks = 0, bytes = 0;  // removed; bytes as stored
  };
  // Removes from local disk every chunk that `named` does not hold of. No import may run meanwhile.
  absl::StatusOr<Collected> Collect(const std::function<bool(const ChunkId&)>& named);

  // Bytes on local disk, as stored: counted now.
  absl::StatusOr<uint64_t> DiskBytes() const;
  // Bytes of one chunk as stored on local disk; 0 when it is not there.
  uint64_t StoredBytes(const ChunkId& id) const;

  const ChunkCounters& counters() const { return counters_; }

 private:
  struct Flight {
    bool done = false;
    absl::StatusOr<ChunkContent> result = ChunkContent();
  };

  ChunkStore(ChunkStoreOptions options, std::unique_ptr<ObjectDir> kept,
             std::unique_ptr<ObjectDir> copies)
      : options_(std::move(options)),
        memory_(options_.memory_bytes_max),
        kept_(std::move(kept)),
        copies_(std::move(copies)) {}

  absl::StatusOr<ChunkContent> Fetch(const ChunkId& id);
  absl::StatusOr<ChunkContent> FromDisk(const ChunkId& id, ObjectDir* dir);
  absl::StatusOr<ChunkContent> FromCold(const ChunkId& id);
  void KeepCopy(const ChunkId& id, std::string_view object);
  absl::Status CountDisk();
  void Evict();
  static std::string ColdKey(const ChunkId& id);

  const ChunkStoreOptions options_;
  MemoryTier memory_;
  const std::unique_ptr<ObjectDir> kept_, copies_;
  ChunkCounters counters_;
  // An estimate between counts: other processes write too.
  std::atomic<uint64_t> kept_bytes_{0}, copied_bytes_{0};
  absl::Mutex evict_mutex_;
  absl::Mutex flights_mutex_;
  absl::flat_hash_map<ChunkId, std::shared_ptr<Flight>> flights_ ABSL_GUARDED_BY(flights_mutex_);
};

}  // namespace reprise::storage
