#include "sandboxd/microvm/microvm_tier.h"

#include <utility>

#include "base/status_macros.h"

namespace reprise::sandboxd {

absl::StatusOr<std::unique_ptr<Substrate>> MakeMicrovmTier(const MicrovmTierOptions& options) {
  ASSIGN_OR_RETURN(
      MachineTier::Parts parts,
      MachineTier::Prepare(options, {sandbox::TIER_MICROVM, "microvm", microvm::Board::kMicrovm}));
  auto tier = std::make_unique<MachineTier>(std::move(parts));
  if (options.probe) (void)tier->Probe();
  return tier;
}

}  // namespace reprise::sandboxd
