// The cold tier as a bucket that speaks S3's HTTP: signed requests over libcurl, retried with
// growing pauses; a body that broke off is continued with a range request from where it broke.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "storage/cold_tier.h"
#include "storage/s3_sign.h"

namespace reprise::storage {

struct S3Location {
  std::string scheme;  // "http" or "https"
  std::string host;    // with its port where one was given
  std::string base;    // path before the key, percent-encoded: "/bucket/prefix" or "/prefix" or ""
  std::string region;
};

// What follows "s3://" and all after it, as OpenColdTier takes it. INVALID_ARGUMENT.
absl::StatusOr<S3Location> ParseS3Location(const std::string& url);

absl::StatusOr<std::shared_ptr<ColdTier>> OpenS3Tier(S3Location location,
                                                     S3Credentials credentials);

}  // namespace reprise::storage
