// The microvm tier: each sandbox is a machine of QEMU's `microvm` board; see machine_tier.h.
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "sandboxd/microvm/machine_tier.h"
#include "sandboxd/substrate.h"

namespace reprise::sandboxd {

using MicrovmTierOptions = MachineTierOptions;

// Needs nothing to be installed: Describe tells what is missing, and every verb answers UNAVAILABLE
// until it is there. Errors: the state directory cannot be used.
absl::StatusOr<std::unique_ptr<Substrate>> MakeMicrovmTier(const MicrovmTierOptions& options);

}  // namespace reprise::sandboxd
