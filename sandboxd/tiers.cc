#include "sandboxd/tiers.h"

#include <utility>

#include "base/status_macros.h"
#ifdef REPRISE_FUNCTION_TIER
#include "sandboxd/function/function_tier.h"
#endif
#ifdef REPRISE_CONTAINER_TIER
#include "sandboxd/container/container_tier.h"
#endif

namespace reprise::sandboxd {

absl::StatusOr<std::vector<std::unique_ptr<Substrate>>> MakeTiers(const DaemonOptions& options) {
  std::vector<std::unique_ptr<Substrate>> tiers;
#ifdef REPRISE_CONTAINER_TIER
  if (!options.containerd_address.empty()) {
    ContainerTierOptions container;
    container.state_dir = options.state_dir;
    container.helper_dir = options.helper_dir;
    container.containerd_address = options.containerd_address;
    ASSIGN_OR_RETURN(std::unique_ptr<Substrate> tier, MakeContainerTier(container));
    tiers.push_back(std::move(tier));
  }
#endif
  return tiers;
}

}  // namespace reprise::sandboxd
