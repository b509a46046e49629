// A converted layer on disk: the EROFS metadata and the table of its data's chunks, in one file
// that is named by its own SHA-256. Format: sandboxd/image/FORMAT.md. What it stands for is the
// layer's image: metadata, zeros up to data_start, then the chunks at 256 KiB each.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/fd.h"
#include "sandboxd/image/chunk_packer.h"
#include "sandboxd/image/erofs_writer.h"

namespace reprise::sandboxd {

inline constexpr uint64_t kLayerFileBytesMax = 8ull << 30;

std::string EncodeLayerFile(const ErofsMetadata& metadata, const std::vector<ChunkRef>& chunks);

// Read-only, mapped into memory; thread-safe.
class LayerFile {
 public:
  // Verifies the file against `id` (64 hexadecimal digits) and its own structure: DATA_LOSS,
  // NOT_FOUND. While this lives, garbage collection leaves the layer alone.
  static absl::StatusOr<std::unique_ptr<LayerFile>> Open(const std::string& path,
                                                         const std::string& id);
  ~LayerFile();
  LayerFile(const LayerFile&) = delete;
  LayerFile& operator=(const LayerFile&) = delete;

  const std::string& id() const { return id_; }
  uint64_t image_bytes() const { return data_start_ + chunks_ * storage::kChunkBytesMax; }
  uint64_t data_start() const { return data_start_; }
  uint32_t inodes() const { return inodes_; }
  uint64_t chunks() const { return chunks_; }
  ChunkRef chunk(uint64_t index) const;
  std::string_view metadata() const { return metadata_; }

 private:
  LayerFile(std::string id, base::UniqueFd fd, std::string_view file)
      : id_(std::move(id)), fd_(std::move(fd)), file_(file) {}
  absl::Status Parse(const std::string& path);

  const std::string id_;
  const base::UniqueFd fd_;      // flock'ed
  const std::string_view file_;  // mapped
  uint64_t data_start_ = 0, chunks_ = 0;
  uint32_t inodes_ = 0;
  std::string_view table_, metadata_;
};

}  // namespace reprise::sandboxd
