// One daemon per state directory. A POSIX record lock: it ends with the process that took it,
// however that ends, and is not handed on to the workers that the process forks.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/fd.h"

namespace reprise::sandboxd {

class StateLock {
 public:
  // FAILED_PRECONDITION naming the process that holds the directory.
  static absl::StatusOr<StateLock> Take(const std::string& directory);

 private:
  explicit StateLock(base::UniqueFd fd) : fd_(std::move(fd)) {}
  base::UniqueFd fd_;
};

}  // namespace reprise::sandboxd
