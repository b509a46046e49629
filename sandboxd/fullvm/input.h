// What a caller wants pressed, moved and typed, as the single actions of a machine's keyboard and
// pointer.
#pragma once

#include <vector>

#include "absl/status/statusor.h"
#include "reprise/sandbox/v1/sandbox.pb.h"
#include "sandboxd/microvm/vm_config.h"

namespace reprise::sandboxd {

namespace sandbox = ::reprise::sandbox::v1;

// INVALID_ARGUMENT naming the event that cannot be: an unknown form, a character that a US keyboard
// does not have, a point off the screen, more than 1,024 actions.
absl::StatusOr<std::vector<microvm::Input>> ToInputs(const sandbox::SendInputRequest& request);

}  // namespace reprise::sandboxd
