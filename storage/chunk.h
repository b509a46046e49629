// Chunks: pieces of at most 256 KiB of image data, named by the SHA-256 of their content, and the
// form in which a tier keeps one (storage/FORMAT.md, "Chunk object").
#pragma once

#include <array>
#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"

namespace reprise::storage {

inline constexpr size_t kChunkBytesMax = 256 << 10;
inline constexpr size_t kChunkHeaderBytes = 12;
// What an object of one chunk can have at most: zstd's bound for incompressible data is below it.
inline constexpr size_t kChunkObjectBytesMax = kChunkBytesMax + (4 << 10);

// SHA-256 of a chunk's content.
struct ChunkId {
  std::array<uint8_t, 32> bytes{};
  bool operator==(const ChunkId&) const = default;
  auto operator<=>(const ChunkId&) const = default;
  template <typename H>
  friend H AbslHashValue(H state, const ChunkId& id) {
    uint64_t word;
    std::memcpy(&word, id.bytes.data(), sizeof(word));
    return H::combine(std::move(state), word);
  }
  std::string Hex() const;  // 64 lower-case digits
};

// INVALID_ARGUMENT unless `hex` is 64 lower-case hexadecimal digits.
absl::StatusOr<ChunkId> ParseChunkId(std::string_view hex);

ChunkId HashChunk(std::string_view content);

// The object for `content` (1..kChunkBytesMax bytes): compressed where that saves an eighth or
// more.
std::string EncodeChunk(std::string_view content);

// The content of `object`, whose SHA-256 was compared with `id`. DATA_LOSS when it is not that
// chunk; the caller adds where it lay.
absl::StatusOr<std::string> DecodeChunk(const ChunkId& id, std::string_view object);

}  // namespace reprise::storage
