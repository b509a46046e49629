// multipart/form-data bodies, read part by part while they arrive: nothing but a delimiter's length
// is held back, so that files of any size pass through.
#pragma once

#include <cstddef>
#include <functional>
#include <optional>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace reprise::sandboxd::http {

inline constexpr size_t kPartHeaderBytesMax = 8192;
inline constexpr size_t kPartsMax = 10000;

// The boundary of a Content-Type. INVALID_ARGUMENT when it is not multipart/form-data with one.
absl::StatusOr<std::string> MultipartBoundary(std::string_view content_type);

class MultipartReader {
 public:
  // `pull` gives the body's next piece, "" at its end.
  using Pull = std::function<absl::StatusOr<std::string>()>;
  MultipartReader(std::string_view boundary, Pull pull);

  struct Part {
    std::string name;
    std::optional<std::string> filename;
  };
  // The next part, after what is left of this one was skipped; nullopt after the last.
  // INVALID_ARGUMENT when the body is malformed or ends early.
  absl::StatusOr<std::optional<Part>> Next();
  // The next piece of the part's content, "" at its end. REQUIRES: Next gave a part.
  absl::StatusOr<std::string> Read();

 private:
  absl::Status More();

  const std::string delimiter_;  // CR LF -- boundary
  const Pull pull_;
  std::string buffer_;
  size_t parts_ = 0;
  bool in_part_ = false, ended_ = false;
};

}  // namespace reprise::sandboxd::http
