#include "rollout/advantage.h"

#include <cmath>

namespace reprise::rollout {

std::optional<float> Advantage(const std::vector<std::optional<float>>& rewards, size_t index) {
  constexpr double kLeastDeviation = 1e-6;
  if (!rewards[index]) return std::nullopt;
  double sum = 0, count = 0;
  for (const auto& reward : rewards) {
    if (!reward) continue;
    sum += *reward;
    ++count;
  }
  if (count < 2) return 0.0f;
  const double mean = sum / count;
  double squares = 0;
  for (const auto& reward : rewards) {
    if (reward) squares += (*reward - mean) * (*reward - mean);
  }
  if (squares == 0) return 0.0f;
  return static_cast<float>((*rewards[index] - mean) /
                            (std::sqrt(squares / (count - 1)) + kLeastDeviation));
}

}  // namespace reprise::rollout
