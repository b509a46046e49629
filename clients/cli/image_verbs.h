// `reprise image show` and `gc`: what they do once their arguments are known. They read the images
// in chunks of a state directory (sandboxd --image-chunks) themselves, beside a running daemon or
// without one.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "clients/cli/context.h"

namespace reprise::cli {

struct ImageOptions {
  std::string state;  // state directory of a daemon
  std::string name;
};

absl::StatusOr<int> ShowImage(const Context& context, const ImageOptions& options);
absl::StatusOr<int> CollectImages(const Context& context, const ImageOptions& options);

}  // namespace reprise::cli
