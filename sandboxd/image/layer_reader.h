// Reads a layer's image at any offset: metadata from the mapped layer file, data from chunks. Keeps
// the order in which chunks were first read, as the trace that the next start fetches ahead, and
// fetches ahead of readers that go from chunk to chunk. Thread-safe.
#pragma once

#include <sys/uio.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "sandboxd/image/chunk_prefetch.h"
#include "sandboxd/image/layer_file.h"
#include "storage/chunk_store.h"

namespace reprise::sandboxd {

// First reads kept in one trace: a gigabyte of chunks.
inline constexpr size_t kTraceChunksMax = 4096;

// Pieces of memory that hold what was read; they stay valid as long as this does.
struct ReadPieces {
  std::vector<iovec> pieces;
  std::vector<storage::ChunkContent> held;
};

class LayerReader {
 public:
  // `store` and `prefetch` outlive this. `trace_path` may not exist yet; what it holds is fetched
  // ahead at once.
  LayerReader(std::unique_ptr<LayerFile> layer, std::string trace_path, storage::ChunkStore* store,
              ChunkPrefetch* prefetch);
  ~LayerReader();
  LayerReader(const LayerReader&) = delete;
  LayerReader& operator=(const LayerReader&) = delete;

  uint64_t bytes() const { return layer_->image_bytes(); }
  // At most `size` bytes from `offset`; fewer at the end of the image. An error names the layer and
  // the offset, and is never replaced by zeros.
  absl::StatusOr<ReadPieces> Read(uint64_t offset, size_t size);

  // Writes the trace when it has grown; the order of first reads, u32 little-endian each.
  absl::Status SaveTrace();

 private:
  void Touched(uint64_t index);
  void FetchAhead(uint64_t index);

  const std::unique_ptr<LayerFile> layer_;
  const std::string trace_path_;
  storage::ChunkStore* const store_;
  ChunkPrefetch* const prefetch_;

  absl::Mutex mutex_;
  std::vector<bool> touched_ ABSL_GUARDED_BY(mutex_);
  std::vector<uint32_t> trace_ ABSL_GUARDED_BY(mutex_);
  size_t traced_ ABSL_GUARDED_BY(mutex_) = 0;   // length of the trace on disk
  uint64_t last_ ABSL_GUARDED_BY(mutex_) = 0;   // chunk that was read last
  uint64_t run_ ABSL_GUARDED_BY(mutex_) = 0;    // chunks read one after another up to it
  uint64_t ahead_ ABSL_GUARDED_BY(mutex_) = 0;  // first chunk that was not fetched ahead yet
};

}  // namespace reprise::sandboxd
