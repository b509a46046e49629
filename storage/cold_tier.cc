#include "storage/cold_tier.h"

#include <fmt/format.h>

#include <cstdlib>

#include "base/status_macros.h"
#include "storage/cold_directory.h"
#include "storage/s3_tier.h"

namespace reprise::storage {
namespace {

std::string Variable(const char* name) {
  const char* value = std::getenv(name);
  return value != nullptr ? value : "";
}

}  // namespace

absl::StatusOr<std::shared_ptr<ColdTier>> OpenColdTier(const std::string& location) {
  if (location.starts_with('/')) return OpenColdDirectory(location);
  if (!location.starts_with("s3://")) {
    return absl::InvalidArgumentError(fmt::format(
        "cold tier '{}' is neither an absolute directory nor an s3:// address", location));
  }
  ASSIGN_OR_RETURN(S3Location parsed, ParseS3Location(location));
  return OpenS3Tier(std::move(parsed),
                    {Variable("AWS_ACCESS_KEY_ID"), Variable("AWS_SECRET_ACCESS_KEY"),
                     Variable("AWS_SESSION_TOKEN")});
}

}  // namespace reprise::storage
