#include "sandboxd/image/layer_file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <cstring>

#include "base/status_macros.h"
#include "sandboxd/image/blob.h"

namespace reprise::sandboxd {
namespace {

constexpr std::string_view kMagic = "RPLAYER1";
constexpr size_t kHeaderBytes = 40, kEntryBytes = 36;

void Put(std::string* out, uint64_t value, size_t bytes) {
  for (size_t i = 0; i < bytes; ++i) *out += static_cast<char>(value >> (8 * i));
}

uint64_t Number(std::string_view from, size_t at, size_t bytes) {
  uint64_t value = 0;
  for (size_t i = 0; i < bytes; ++i) {
    value |= static_cast<uint64_t>(static_cast<uint8_t>(from[at + i])) << (8 * i);
  }
  return value;
}

}  // namespace

std::string EncodeLayerFile(const ErofsMetadata& metadata, const std::vector<ChunkRef>& chunks) {
  std::string file(kMagic);
  file.reserve(kHeaderBytes + chunks.size() * kEntryBytes + metadata.bytes.size());
  Put(&file, metadata.bytes.size(), 8);
  Put(&file, metadata.data_start, 8);
  Put(&file, chunks.size(), 8);
  Put(&file, metadata.inodes, 4);
  Put(&file, 0, 4);
  for (const ChunkRef& chunk : chunks) {
    file.append(reinterpret_cast<const char*>(chunk.id.bytes.data()), chunk.id.bytes.size());
    Put(&file, chunk.length, 4);
  }
  return file + metadata.bytes;
}

absl::StatusOr<std::unique_ptr<LayerFile>> LayerFile::Open(const std::string& path,
                                                           const std::string& id) {
  base::UniqueFd fd(open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW));
  struct stat info {};
  if (!fd.valid() || fstat(fd.get(), &info) != 0)
    return base::ErrnoStatus(errno, fmt::format("open layer {}", path));
  if (flock(fd.get(), LOCK_SH | LOCK_NB) != 0)
    return absl::UnavailableError(fmt::format("layer {} is being removed", path));
  const auto size = static_cast<size_t>(info.st_size);
  if (size < kHeaderBytes || size > kLayerFileBytesMax)
    return absl::DataLossError(
        fmt::format("layer {} has {} bytes, which no layer has", path, size));
  void* const mapped = mmap(nullptr, size, PROT_READ, MAP_SHARED, fd.get(), 0);
  if (mapped == MAP_FAILED) return base::ErrnoStatus(errno, fmt::format("map layer {}", path));
  std::unique_ptr<LayerFile> layer(
      new LayerFile(id, std::move(fd), {static_cast<const char*>(mapped), size}));
  RETURN_IF_ERROR(layer->Parse(path));
  return layer;
}

LayerFile::~LayerFile() { munmap(const_cast<char*>(file_.data()), file_.size()); }

absl::Status LayerFile::Parse(const std::string& path) {
  if (Sha256Digest(file_) != "sha256:" + id_)
    return absl::DataLossError(fmt::format("layer {} is damaged: it has another SHA-256", path));
  const uint64_t metadata_bytes = Number(file_, 8, 8);
  data_start_ = Number(file_, 16, 8);
  chunks_ = Number(file_, 24, 8);
  inodes_ = static_cast<uint32_t>(Number(file_, 32, 4));
  const uint64_t room = file_.size() - kHeaderBytes;
  if (!file_.starts_with(kMagic) || chunks_ > room / kEntryBytes ||
      metadata_bytes != room - chunks_ * kEntryBytes || metadata_bytes > data_start_ ||
      data_start_ % storage::kChunkBytesMax != 0 || data_start_ > kLayerFileBytesMax) {
    return absl::DataLossError(
        fmt::format("layer {} is of another format: import its image again", path));
  }
  table_ = file_.substr(kHeaderBytes, chunks_ * kEntryBytes);
  metadata_ = file_.substr(kHeaderBytes + table_.size());
  for (uint64_t i = 0; i < chunks_; ++i) {
    if (chunk(i).length > storage::kChunkBytesMax)
      return absl::DataLossError(fmt::format("layer {}: chunk {} is too long", path, i));
  }
  return absl::OkStatus();
}

ChunkRef LayerFile::chunk(uint64_t index) const {
  const std::string_view entry = table_.substr(index * kEntryBytes, kEntryBytes);
  ChunkRef chunk;
  std::memcpy(chunk.id.bytes.data(), entry.data(), chunk.id.bytes.size());
  chunk.length = static_cast<uint32_t>(Number(entry, chunk.id.bytes.size(), 4));
  return chunk;
}

}  // namespace reprise::sandboxd
