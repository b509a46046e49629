#include "engine/parallel/gather_plan.h"

#include <fmt/format.h>

#include <algorithm>

namespace reprise::engine {

absl::StatusOr<GatherPlan> PlanGather(absl::Span<const int64_t> bounds, int ranks) {
  if (static_cast<int64_t>(bounds.size()) != ranks + 1) {
    return absl::InvalidArgumentError(fmt::format("a gather of {} ranks has {} bounds; needed: {}",
                                                  ranks, bounds.size(), ranks + 1));
  }
  GatherPlan plan;
  if (bounds[0] < 0)
    return absl::InvalidArgumentError(fmt::format("a gather begins at {}", bounds[0]));
  for (int rank = 0; rank < ranks; ++rank) {
    const int64_t count = bounds[rank + 1] - bounds[rank];
    if (count < 0) {
      return absl::InvalidArgumentError(
          fmt::format("the part of rank {} in a gather has {} elements", rank, count));
    }
    if (count > 0) plan.parts.push_back({rank, bounds[rank], count});
  }
  plan.even = static_cast<int>(plan.parts.size()) == ranks &&
              std::all_of(plan.parts.begin(), plan.parts.end(), [&](const GatherPlan::Part& part) {
                return part.count == plan.parts[0].count;
              });
  return plan;
}

}  // namespace reprise::engine
