#include "storage/record.h"

#include <fmt/format.h>

#include <cstdint>
#include <cstring>

#include "base/crc32c.h"

namespace reprise::storage {
namespace {

constexpr char kVersion = 1;
static_assert(kRecordHeaderBytes == sizeof(char) + sizeof(uint32_t),
              "FORMAT.md: u8 version, u32 crc");

uint32_t MaskedCrc(std::string_view key, std::string_view payload) {
  uint32_t crc = base::Crc32c(std::string_view(&kVersion, 1));
  crc = base::Crc32c(payload, base::Crc32c(key, crc));
  return ((crc >> 15) | (crc << 17)) + 0xa282ead8u;
}

}  // namespace

std::string FrameRecord(std::string_view key, std::string_view payload) {
  std::string record;
  record.reserve(kRecordHeaderBytes + payload.size());
  record.push_back(kVersion);
  uint32_t crc = MaskedCrc(key, payload);
  for (int shift = 0; shift < 32; shift += 8) record.push_back(static_cast<char>(crc >> shift));
  record.append(payload);
  return record;
}

absl::StatusOr<std::string_view> UnframeRecord(std::string_view key, std::string_view record) {
  if (record.size() < kRecordHeaderBytes) {
    return absl::DataLossError(
        fmt::format("record of {} bytes is shorter than its header", record.size()));
  }
  if (record[0] != kVersion) {
    return absl::DataLossError(fmt::format("record has format version {}, this program reads {}",
                                           static_cast<unsigned char>(record[0]),
                                           static_cast<int>(kVersion)));
  }
  uint32_t stored = 0;
  for (int i = 0; i < 4; ++i)
    stored |= static_cast<uint32_t>(static_cast<unsigned char>(record[1 + i])) << (8 * i);
  std::string_view payload = record.substr(kRecordHeaderBytes);
  if (stored != MaskedCrc(key, payload)) {
    return absl::DataLossError("record fails its checksum");
  }
  return payload;
}

}  // namespace reprise::storage
