// The lowest tier: immutable objects in a place that several nodes share and that is never evicted.
// A directory on any POSIX mount (NFS, 3FS) or a bucket that speaks S3. Thread-safe.
#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace reprise::storage {

class ColdTier {
 public:
  virtual ~ColdTier() = default;
  // Keys are "part/part/name", each part as base::CheckId wants it; INVALID_ARGUMENT otherwise.
  // NOT_FOUND: there is no such object; UNAVAILABLE: it did not answer after all retries;
  // DATA_LOSS: larger than `bytes_max`. The content is not verified here.
  virtual absl::StatusOr<std::string> Get(const std::string& key, size_t bytes_max) = 0;
  virtual absl::StatusOr<bool> Has(const std::string& key) = 0;
  // Durable and visible as a whole on return; replaces an object of the same key.
  virtual absl::Status Put(const std::string& key, std::string_view object) = 0;
  // OK when there is none.
  virtual absl::Status Remove(const std::string& key) = 0;
};

// From a user's words:
//   /absolute/directory
//   s3://BUCKET[/PREFIX]?region=REGION[&endpoint=http(s)://HOST[:PORT]]
// With an endpoint the bucket is part of the path, else of AWS's host name. Credentials come from
// AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN (where set); they appear in no
// error. INVALID_ARGUMENT says what is wrong.
absl::StatusOr<std::shared_ptr<ColdTier>> OpenColdTier(const std::string& location);

}  // namespace reprise::storage
