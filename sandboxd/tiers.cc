#include "sandboxd/tiers.h"

#include "base/status_macros.h"
#include "sandboxd/function/function_tier.h"

namespace reprise::sandboxd {

absl::StatusOr<std::vector<std::unique_ptr<Substrate>>> MakeTiers(const DaemonOptions& options) {
  std::vector<std::unique_ptr<Substrate>> tiers;
  FunctionTierOptions function;
  function.state_dir = options.state_dir + "/function";
  function.helper_dir = options.helper_dir;
  function.pool = options.function_pool;
  function.max = options.function_max;
  ASSIGN_OR_RETURN(auto function_tier, MakeFunctionTier(function));
  tiers.push_back(std::move(function_tier));
  return tiers;
}

}  // namespace reprise::sandboxd
