// A rank but the first: it does what the first one tells it, and exchanges with all.
#pragma once

#include <string_view>

#include "absl/status/status.h"
#include "base/fd.h"

namespace reprise::engine {

// Serves one group after the other at `listener`, or with `once` the first and then no other; a
// group ends with its commands. `secret`: what callers must know. Errors: UNAVAILABLE when with
// `once` nobody came for a minute, or what ended the group.
absl::Status ServeRank(int listener, std::string_view secret, bool once);

}  // namespace reprise::engine
