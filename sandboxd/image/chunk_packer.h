// Lays the contents of a layer's files into its data region and cuts the region into chunks. A file
// of 64 KiB or more begins at a chunk's start, so that the same file gives the same chunks in every
// layer. Smaller files share chunks of up to 64 KiB, block by block; where such a chunk ends is
// decided by the files' own contents, so that one new file changes the chunks near it only. Chunks
// are hashed, compressed and stored by threads of this object.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "base/bounded_queue.h"
#include "storage/chunk_store.h"

namespace reprise::sandboxd {

// One chunk of a data region; it stands for kChunkBytesMax bytes of address, of which the first
// `length` have content. 0: all zeros, and nothing is stored.
struct ChunkRef {
  storage::ChunkId id;
  uint32_t length = 0;
};

class ChunkPacker {
 public:
  // `writer` outlives this; whoever made it commits it after Finish.
  explicit ChunkPacker(storage::ChunkStore::Writer* writer);
  ~ChunkPacker();
  ChunkPacker(const ChunkPacker&) = delete;
  ChunkPacker& operator=(const ChunkPacker&) = delete;

  // One file after another: Begin with its size, then exactly that much of Append and Skip (zeros).
  // Begin returns the file's offset in the data region.
  absl::StatusOr<uint64_t> Begin(uint64_t size);
  absl::Status Append(std::string_view data);
  absl::Status Skip(uint64_t bytes);
  absl::Status End();

  // Waits for all chunks. To be called once, after the last End.
  absl::StatusOr<std::vector<ChunkRef>> Finish();

 private:
  struct Job {
    size_t index;
    std::string content;
  };
  void Work();
  absl::StatusOr<size_t> NewChunk();
  absl::Status Send(size_t index, std::string content);
  absl::Status CloseShared();
  absl::Status FlushLarge();

  storage::ChunkStore::Writer* const writer_;
  base::BoundedQueue<Job> queue_;
  std::vector<std::thread> workers_;
  absl::Mutex mutex_;
  absl::Status failed_ ABSL_GUARDED_BY(mutex_);
  std::vector<ChunkRef> chunks_ ABSL_GUARDED_BY(mutex_);

  bool large_ = false;
  uint64_t left_ = 0;        // of the file that was begun
  uint32_t crc_ = 0;         // of a small file's content
  std::string pending_;      // of a large file's current chunk
  std::string shared_;       // the chunk that small files share
  size_t shared_index_ = 0;  // valid while shared_ is not empty
};

}  // namespace reprise::sandboxd
