// The vm tier: each sandbox is a whole PC (QEMU's q35 board) with a screen, a keyboard and a
// console. An image of layers, or none, makes a guest of ours as the microvm tier does; a disk
// image boots its own system from a copy-on-write disk, and offers the agent's verbs once that
// answers.
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "sandboxd/microvm/machine_tier.h"
#include "sandboxd/substrate.h"

namespace reprise::sandboxd {

struct FullvmTierOptions : MachineTierOptions {
  // From the power button to the end of a system of its own that is stopped.
  uint64_t stop_grace_ms = 5'000;
};

// As MakeMicrovmTier.
absl::StatusOr<std::unique_ptr<Substrate>> MakeFullvmTier(const FullvmTierOptions& options);

}  // namespace reprise::sandboxd
