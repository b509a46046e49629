// Where the running program lies: helpers are beside it.
#pragma once

#include <string>

#include "absl/status/statusor.h"

namespace reprise::base {

absl::StatusOr<std::string> ProgramDir();

}  // namespace reprise::base
