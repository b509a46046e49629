#include "storage/table_check.h"

#include <fmt/format.h>
#include <rocksdb/env.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string_view>
#include <vector>

namespace reprise::storage {
namespace {

// The end of a table: type of the checksums (u8), where the block of metadata begins (varint) and
// how long it is, the same of the index, to 41 bytes; version (u32) and magic number (u64).
constexpr size_t kFooterBytes = 53;
// Behind each block: compression (u8), checksum (u32).
constexpr uint64_t kTrailerBytes = 5;
constexpr size_t kWordBytes = 4;
constexpr unsigned char kHashIndexBit = 0x80;  // of the last byte of a block's last word

// Where the block of metadata begins; that of the properties lies before it.
std::optional<uint64_t> MetadataOffset(std::string_view footer) {
  uint64_t offset = 0;
  for (size_t i = 1, shift = 0; i < footer.size() && shift < 64; ++i, shift += 7) {
    const auto byte = static_cast<unsigned char>(footer[i]);
    offset |= static_cast<uint64_t>(byte & 0x7f) << shift;
    if ((byte & 0x80) == 0) return offset;
  }
  return std::nullopt;
}

// The byte that is damaged; nullopt when none is, or when the table cannot be read so far.
std::optional<uint64_t> DamagedByte(rocksdb::Env* env, const std::string& path) {
  uint64_t size = 0;
  std::unique_ptr<rocksdb::RandomAccessFile> file;
  if (!env->GetFileSize(path, &size).ok() || size < kFooterBytes) return std::nullopt;
  if (!env->NewRandomAccessFile(path, &file, rocksdb::EnvOptions()).ok()) return std::nullopt;
  char bytes[kFooterBytes];
  rocksdb::Slice footer;
  if (!file->Read(size - kFooterBytes, kFooterBytes, &footer, bytes).ok()) return std::nullopt;
  const auto metadata = MetadataOffset({footer.data(), footer.size()});
  if (!metadata || *metadata < kTrailerBytes + kWordBytes || *metadata > size - kFooterBytes)
    return std::nullopt;
  const uint64_t last = *metadata - kTrailerBytes - 1;
  rocksdb::Slice byte;
  if (!file->Read(last, 1, &byte, bytes).ok() || byte.size() != 1) return std::nullopt;
  if ((static_cast<unsigned char>(byte[0]) & kHashIndexBit) == 0) return std::nullopt;
  return last;
}

}  // namespace

absl::Status CheckTables(rocksdb::Env* env, const std::string& directory) {
  std::vector<std::string> names;
  if (!env->GetChildren(directory, &names).ok()) return absl::OkStatus();  // not there yet
  for (const std::string& name : names) {
    if (!name.ends_with(".sst")) continue;
    const std::string path = directory + "/" + name;
    if (const std::optional<uint64_t> at = DamagedByte(env, path)) {
      return absl::DataLossError(fmt::format(
          "{} is damaged at byte {}: its properties end with what no table of this program has; "
          "restore the store from a copy",
          path, *at));
    }
  }
  return absl::OkStatus();
}

}  // namespace reprise::storage
