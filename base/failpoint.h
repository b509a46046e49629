// Named points at which a process can be made to kill itself, so that crash tests can cut it at an exact record.
// Off unless a daemon is started with --fail-point NAME:N, which sends SIGKILL to the process when
// Hit(NAME) is called for the N-th time (counting from 1). One relaxed load per call when off.
#pragma once

#include <string_view>

#include "absl/status/status.h"

namespace reprise::base {

// Arms one point from "NAME:N". INVALID_ARGUMENT when the text is malformed.
absl::Status ArmFailPoint(std::string_view spec);

// Counts a passage through `name`; does not return when the armed count is reached.
void FailPoint(std::string_view name);

}  // namespace reprise::base
