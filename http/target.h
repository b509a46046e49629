// Request targets taken apart: "/a/b%20c?x=1&y" -> decoded path segments and query parameters.
// Strict: what is not a well-formed origin-form target is refused, so that no two readers of one
// path can disagree about it.
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace reprise::http {

inline constexpr size_t kTargetBytesMax = 8192;
inline constexpr size_t kQueryParamsMax = 256;

struct Target {
  std::string path;                                        // as sent
  std::vector<std::string> segments;                       // decoded; "/" has none
  std::vector<std::pair<std::string, std::string>> query;  // decoded
};

// INVALID_ARGUMENT with what is wrong.
absl::StatusOr<Target> ParseTarget(std::string_view target);

// Replaces %XX, and '+' by a space where `plus`. INVALID_ARGUMENT for bad escapes and NUL bytes.
absl::StatusOr<std::string> PercentDecode(std::string_view text, bool plus);

// "a=1&b=2" as pairs, decoded.
absl::StatusOr<std::vector<std::pair<std::string, std::string>>> ParseQuery(std::string_view text);

}  // namespace reprise::http
