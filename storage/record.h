// The frame around every stored value: version, masked CRC-32C over version, key and payload,
// payload. Format: storage/FORMAT.md.
#pragma once

#include <string>
#include <string_view>

#include "absl/status/statusor.h"

namespace reprise::storage {

inline constexpr size_t kRecordHeaderBytes = 5;

std::string FrameRecord(std::string_view key, std::string_view payload);

// The payload inside `record`, which stays owned by the caller. DATA_LOSS when it is too short, of
// another version, or fails its CRC; the caller adds where it lay.
absl::StatusOr<std::string_view> UnframeRecord(std::string_view key, std::string_view record);

}  // namespace reprise::storage
