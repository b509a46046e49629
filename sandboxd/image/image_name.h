// Names of images: "path/of/name" or "path/of/name:tag", each part as base::CheckId wants it.
#pragma once

#include <string_view>

#include "absl/status/status.h"

namespace reprise::sandboxd {

// INVALID_ARGUMENT when `name` is not a name; at most base::kMaxIdBytes before the colon and after
// it.
absl::Status CheckImageName(std::string_view name);

}  // namespace reprise::sandboxd
