#include "storage/log_check.h"

#include <fmt/format.h>
#include <rocksdb/env.h>

#include <algorithm>
#include <vector>

#include "base/crc32c.h"

namespace reprise::storage {
namespace {

constexpr size_t kBlockBytes = 32 << 10;
constexpr size_t kHeaderBytes = 7;             // crc, length, type
constexpr size_t kRecyclableHeaderBytes = 11;  // and the number of the log
constexpr uint8_t kFirstRecyclableType = 5, kLastRecyclableType = 8;
constexpr uint8_t kLastType = 11;

uint8_t Byte(std::string_view text, size_t at) { return static_cast<uint8_t>(text[at]); }

size_t HeaderBytes(uint8_t type) {
  return type >= kFirstRecyclableType && type <= kLastRecyclableType ? kRecyclableHeaderBytes
                                                                     : kHeaderBytes;
}

bool Matches(std::string_view content, size_t at, size_t end) {
  uint32_t stored = 0;
  for (size_t i = 0; i < 4; ++i) stored |= static_cast<uint32_t>(Byte(content, at + i)) << (8 * i);
  const uint32_t crc = base::Crc32c(content.substr(at + 6, end - at - 6));
  return stored == ((crc >> 15) | (crc << 17)) + 0xa282ead8u;
}

// The end of a good record at `at`, or 0.
size_t RecordEnd(std::string_view content, size_t at) {
  if (at + kHeaderBytes > content.size()) return 0;
  const uint8_t type = Byte(content, at + 6);
  if (type == 0 || type > kLastType) return 0;
  const size_t length = Byte(content, at + 4) | Byte(content, at + 5) << 8;
  const size_t end = at + HeaderBytes(type) + length;
  const size_t block_end = (at / kBlockBytes + 1) * kBlockBytes;
  if (end > std::min(block_end, content.size())) return 0;
  return Matches(content, at, end) ? end : 0;
}

// Whether what cannot be read at `at` is more than a torn tail.
bool IsDamage(std::string_view content, size_t at) {
  for (size_t next = at + 1; next + kHeaderBytes <= content.size(); ++next) {
    if (RecordEnd(content, next) != 0) return true;
  }
  // The last record, whole but for its length or its type.
  const size_t block_end = (at / kBlockBytes + 1) * kBlockBytes;
  if (at + kHeaderBytes > content.size()) return false;
  if (content.size() <= block_end && Matches(content, at, content.size())) return true;
  // A record of which every byte is there and whose checksum fails was not torn.
  const uint8_t type = Byte(content, at + 6);
  const size_t length = Byte(content, at + 4) | Byte(content, at + 5) << 8;
  return (type != 0 || length != 0) && at + HeaderBytes(type) + length <= content.size();
}

bool IsLogFile(const std::string& name) {
  return name.ends_with(".log") || name.starts_with("MANIFEST-");
}

}  // namespace

std::optional<LogDamage> FindLogDamage(std::string_view content) {
  size_t at = 0;
  while (at < content.size()) {
    const size_t block_end = (at / kBlockBytes + 1) * kBlockBytes;
    if (block_end - at < kHeaderBytes) {  // padding
      at = block_end;
      continue;
    }
    const size_t end = RecordEnd(content, at);
    if (end != 0) {
      at = end;
      continue;
    }
    if (!IsDamage(content, at)) return std::nullopt;
    return LogDamage{at, "a record fails its checksum"};
  }
  return std::nullopt;
}

absl::Status CheckLogFiles(rocksdb::Env* env, const std::string& directory) {
  std::vector<std::string> names;
  if (rocksdb::Status status = env->GetChildren(directory, &names); !status.ok()) {
    return absl::OkStatus();  // not there yet; opening says what else is wrong
  }
  for (const std::string& name : names) {
    if (!IsLogFile(name)) continue;
    const std::string path = directory + "/" + name;
    std::string content;
    rocksdb::Status status = rocksdb::ReadFileToString(env, path, &content);
    if (status.IsNotFound()) continue;  // another process, which holds the store, removed it
    if (!status.ok()) {
      return absl::DataLossError(
          fmt::format("cannot read {}: {}; check the disk, or restore the "
                      "store from a copy",
                      path, status.ToString()));
    }
    if (std::optional<LogDamage> damage = FindLogDamage(content)) {
      return absl::DataLossError(
          fmt::format("{} is damaged at byte {}: {}; restore the store from a copy", path,
                      damage->offset, damage->what));
    }
  }
  return absl::OkStatus();
}

}  // namespace reprise::storage
