// Identifiers that come from outside are checked here once, before they become a path or a key.
#pragma once

#include <string>
#include <string_view>

#include "absl/status/status.h"

namespace reprise::base {

inline constexpr size_t kMaxIdBytes = 200;

// An id is 1..200 bytes of [A-Za-z0-9._-], with '/' allowed between non-empty segments when `allow_slash`;
// no segment is "." or "..". `what` names the field in the error (INVALID_ARGUMENT).
absl::Status CheckId(std::string_view id, std::string_view what, bool allow_slash = false);

// `bytes` random bytes from the kernel as lower-case hexadecimal.
std::string RandomHex(size_t bytes);

}  // namespace reprise::base
