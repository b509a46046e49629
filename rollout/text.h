// Text that goes into records and prompts: made valid UTF-8, cut without hiding that it was cut,
// hashed.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "absl/status/status.h"

namespace reprise::rollout {

// `text` with each byte that belongs to no valid UTF-8 sequence replaced by U+FFFD.
std::string ToUtf8(std::string_view text);

// At most about `max_bytes` of `text` (valid UTF-8): its first and last half around a line that
// says how many bytes were left out. Unchanged when it fits.
std::string CutMiddle(std::string_view text, uint64_t max_bytes);

// `text` without white space (space, \t, \n, \r, \f, \v) at its ends.
std::string_view Strip(std::string_view text);

// The text of a status, in a type that fmt and std take.
inline std::string Message(const absl::Status& status) { return std::string(status.message()); }

// 32 raw bytes.
std::string Sha256(std::string_view data);

// Lower-case hexadecimal.
std::string Hex(std::string_view bytes);

}  // namespace reprise::rollout
