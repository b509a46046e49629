#include "storage/chunk.h"

#include <fmt/format.h>
#include <openssl/sha.h>
#include <zstd.h>

#include <memory>

#include "base/format.h"

namespace reprise::storage {
namespace {

constexpr char kMagic[4] = {'R', 'P', 'C', '1'};
constexpr uint8_t kCodecPlain = 0;
constexpr uint8_t kCodecZstd = 1;
constexpr int kZstdLevel = 1;
constexpr size_t kSavingMin = 8;  // compressed must save 1/8, else reading it back costs more
static_assert(kChunkHeaderBytes == sizeof(kMagic) + 4 + 4);

struct CompressFree {
  void operator()(ZSTD_CCtx* context) const { ZSTD_freeCCtx(context); }
};
struct DecompressFree {
  void operator()(ZSTD_DCtx* context) const { ZSTD_freeDCtx(context); }
};

// One context a thread: making one costs more than compressing a small chunk.
ZSTD_CCtx* Compressor() {
  thread_local std::unique_ptr<ZSTD_CCtx, CompressFree> context(ZSTD_createCCtx());
  return context.get();
}
ZSTD_DCtx* Decompressor() {
  thread_local std::unique_ptr<ZSTD_DCtx, DecompressFree> context(ZSTD_createDCtx());
  return context.get();
}

void PutHeader(char* at, uint8_t codec, uint32_t length) {
  std::memcpy(at, kMagic, sizeof(kMagic));
  std::memset(at + 4, 0, 4);
  at[4] = static_cast<char>(codec);
  for (int i = 0; i < 4; ++i) at[8 + i] = static_cast<char>(length >> (8 * i));
}

int HexValue(char digit) {
  if (digit >= '0' && digit <= '9') return digit - '0';
  if (digit >= 'a' && digit <= 'f') return digit - 'a' + 10;
  return -1;
}

}  // namespace

std::string ChunkId::Hex() const {
  constexpr char kDigits[] = "0123456789abcdef";
  std::string hex;
  hex.reserve(2 * bytes.size());
  for (uint8_t byte : bytes) {
    hex += kDigits[byte >> 4];
    hex += kDigits[byte & 15];
  }
  return hex;
}

absl::StatusOr<ChunkId> ParseChunkId(std::string_view hex) {
  ChunkId id;
  bool good = hex.size() == 2 * id.bytes.size();
  for (size_t i = 0; good && i < id.bytes.size(); ++i) {
    const int high = HexValue(hex[2 * i]), low = HexValue(hex[2 * i + 1]);
    good = high >= 0 && low >= 0;
    id.bytes[i] = static_cast<uint8_t>(high << 4 | low);
  }
  if (!good) {
    return absl::InvalidArgumentError(
        fmt::format("'{}' is not a chunk id: 64 lower-case hexadecimal digits", hex));
  }
  return id;
}

ChunkId HashChunk(std::string_view content) {
  ChunkId id;
  SHA256(reinterpret_cast<const uint8_t*>(content.data()), content.size(), id.bytes.data());
  return id;
}

std::string EncodeChunk(std::string_view content) {
  const auto length = static_cast<uint32_t>(content.size());
  std::string object(kChunkHeaderBytes + content.size(), '\0');
  const size_t room = content.size() - content.size() / kSavingMin;
  const size_t packed = ZSTD_compressCCtx(Compressor(), object.data() + kChunkHeaderBytes, room,
                                          content.data(), content.size(), kZstdLevel);
  if (ZSTD_isError(packed)) {  // does not fit into `room`
    PutHeader(object.data(), kCodecPlain, length);
    std::memcpy(object.data() + kChunkHeaderBytes, content.data(), content.size());
    return object;
  }
  PutHeader(object.data(), kCodecZstd, length);
  object.resize(kChunkHeaderBytes + packed);
  return object;
}

absl::StatusOr<std::string> DecodeChunk(const ChunkId& id, std::string_view object) {
  auto damaged = [&id](std::string_view why) {
    return absl::DataLossError(fmt::format("chunk {} is damaged: {}", id.Hex(), why));
  };
  if (object.size() < kChunkHeaderBytes) return damaged("too short");
  if (std::memcmp(object.data(), kMagic, sizeof(kMagic)) != 0) return damaged("no chunk header");
  uint32_t length = 0;
  for (int i = 0; i < 4; ++i) {
    length |= static_cast<uint32_t>(static_cast<uint8_t>(object[8 + i])) << (8 * i);
  }
  if (length == 0 || length > kChunkBytesMax) return damaged("impossible length");
  const std::string_view body = object.substr(kChunkHeaderBytes);
  std::string content;
  switch (static_cast<uint8_t>(object[4])) {
    case kCodecPlain:
      if (body.size() != length) return damaged("another length than its header says");
      content = body;
      break;
    case kCodecZstd: {
      content.resize(length);
      const size_t got =
          ZSTD_decompressDCtx(Decompressor(), content.data(), length, body.data(), body.size());
      if (ZSTD_isError(got) || got != length) return damaged("zstd cannot read it");
      break;
    }
    default:
      return damaged("unknown codec");
  }
  if (HashChunk(content) != id) return damaged("its content has another SHA-256");
  return content;
}

}  // namespace reprise::storage
