// Goal: an advantage is what its formula says over the samples that count, and absent where there
// is no reward. Method: groups small enough to compute by hand.
#include "rollout/advantage.h"

#include <gtest/gtest.h>

namespace reprise::rollout {
namespace {

using Rewards = std::vector<std::optional<float>>;

TEST(Advantage, IsTheRewardInUnitsOfItsGroupsDeviation) {
  const Rewards rewards = {1.0f, 0.0f, 0.0f, 1.0f};
  // mean 0.5, squares 4 * 0.25, deviation sqrt(1 / 3)
  const double one = 0.5 / (0.57735026918962576 + 1e-6);
  EXPECT_FLOAT_EQ(*Advantage(rewards, 0), static_cast<float>(one));
  EXPECT_FLOAT_EQ(*Advantage(rewards, 1), static_cast<float>(-one));
}

TEST(Advantage, LeavesOutSamplesWithoutAReward) {
  const Rewards rewards = {1.0f, std::nullopt, 0.0f};
  EXPECT_FALSE(Advantage(rewards, 1).has_value());
  EXPECT_FLOAT_EQ(*Advantage(rewards, 0), static_cast<float>(0.5 / (0.70710678118654752 + 1e-6)));
}

TEST(Advantage, IsZeroWhereRewardsDoNotDiffer) {
  EXPECT_EQ(*Advantage({0.1f, 0.1f, 0.1f}, 2), 0.0f);
  EXPECT_EQ(*Advantage({std::nullopt, 7.0f}, 1), 0.0f);
}

}  // namespace
}  // namespace reprise::rollout
