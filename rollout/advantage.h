// The advantage of a sample over its group, as group-relative policy optimisation takes it.
#pragma once

#include <optional>
#include <vector>

namespace reprise::rollout {

// (r - mean) / (std + 1e-6) of rewards[index], over the samples that have a reward; std is the
// sample standard deviation (n - 1). 0 where all rewards are equal or there is one; nullopt without
// a reward.
std::optional<float> Advantage(const std::vector<std::optional<float>>& rewards, size_t index);

}  // namespace reprise::rollout
