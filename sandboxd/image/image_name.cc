#include "sandboxd/image/image_name.h"

#include "base/ids.h"
#include "base/status_macros.h"

namespace reprise::sandboxd {

absl::Status CheckImageName(std::string_view name) {
  const size_t colon = name.find(':');
  RETURN_IF_ERROR(base::CheckId(name.substr(0, colon), "image name", /*allow_slash=*/true));
  if (colon == std::string_view::npos) return absl::OkStatus();
  return base::CheckId(name.substr(colon + 1), "image tag");
}

}  // namespace reprise::sandboxd
