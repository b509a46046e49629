// The page of the web viewer (clients/web/viewer.html), compiled in.
#pragma once

#include <cstddef>

namespace reprise::rollout::http {

extern const char kPage[];
extern const size_t kPageBytes;

}  // namespace reprise::rollout::http
