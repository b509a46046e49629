// Secrets that lie in files: tokens of clients, what the processes of a group share.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"

namespace reprise::base {

inline constexpr size_t kSecretBytesMin = 16;
inline constexpr size_t kSecretBytesMax = 4096;

// What the file holds, without the white space at its end. `name` is what errors call it, e.g.
// "token". INVALID_ARGUMENT when it is too short or too long, or when others than its owner may
// read the file; NOT_FOUND and others as for ReadFile.
absl::StatusOr<std::string> ReadSecretFile(const std::string& path, std::string_view name);

}  // namespace reprise::base
