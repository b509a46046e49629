// The cold tier as a directory: one file an object.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "storage/cold_tier.h"

namespace reprise::storage {

// `path` is absolute; made when it is missing.
absl::StatusOr<std::shared_ptr<ColdTier>> OpenColdDirectory(const std::string& path);

}  // namespace reprise::storage
