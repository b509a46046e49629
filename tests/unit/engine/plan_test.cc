// Goal: `model plan` counts to the byte and refuses what does not fit. Method: sparse files of the
// published sizes, counted here once more from their tensor tables.
#include "engine/plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/fd.h"
#include "tests/unit/engine/published_models.h"

namespace reprise::engine {
namespace {

using testing::HasSubstr;

constexpr int64_t kGb = 1'000'000'000;

int64_t Bytes(const PublishedTensor& tensor) {
  int64_t bytes = tensor.dtype == "I64"    ? 8
                  : tensor.dtype == "F32"  ? 4
                  : tensor.dtype == "BF16" ? 2
                                           : 1;
  for (int64_t dimension : tensor.shape) bytes *= dimension;
  return bytes;
}

class PlanTest : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    scratch_ = std::make_unique<base::ScratchDir>();
    WriteSparse(Flash(), Tensors(Flash()), scratch_->path());
  }
  static void TearDownTestSuite() { scratch_.reset(); }
  static ModelPlan Plan(const PlanRequest& request) {
    auto plan = PlanModel(scratch_->path(), request);
    EXPECT_TRUE(plan.ok()) << plan.status();
    return plan.ok() ? *plan : ModelPlan();
  }
  static std::unique_ptr<base::ScratchDir> scratch_;
};
std::unique_ptr<base::ScratchDir> PlanTest::scratch_;

TEST_F(PlanTest, EveryDeviceHasItsPartAndNothingIsCountedTwice) {
  // The part of each tensor on one of eight devices, in two groups of four; all divide evenly.
  int64_t all = 0, on_one = 0;
  for (const PublishedTensor& tensor : Tensors(Flash())) {
    if (tensor.name.rfind("mtp.", 0) == 0) continue;
    const auto of = [&](const char* part) { return tensor.name.find(part) != std::string::npos; };
    const bool divided = of(".attn.wq_b") || of(".attn_sink") || of(".wo_a") || of(".wo_b") ||
                         tensor.name == "head.weight";
    all += Bytes(tensor);
    on_one += Bytes(tensor) / (of("ffn.experts.") ? 8 : divided ? 4 : 1);
  }
  const ModelPlan plan = Plan({.devices = 8, .device_bytes = 80 * kGb, .context = 1 << 20});
  EXPECT_EQ(plan.expert_bytes + plan.divided_bytes + plan.common_bytes, all);
  ASSERT_EQ(plan.placements.size(), 4u);  // groups of 1, 2, 4 and 8
  for (const Placement& at : plan.placements) {
    EXPECT_EQ(at.group_ranks * at.groups, 8);
    EXPECT_EQ(at.kv_bytes, 80 * kGb - at.weight_bytes);
    EXPECT_EQ(at.sequences, at.kv_bytes / plan.sequence_bytes * at.groups);
    if (at.group_ranks == 4) {
      EXPECT_EQ(at.weight_bytes, on_one);
    }
  }
  for (size_t i = 1; i < plan.placements.size(); ++i)
    EXPECT_GE(plan.placements[i - 1].sequences, plan.placements[i].sequences);
}

TEST_F(PlanTest, WhatDoesNotFitLacksSoMuch) {
  const ModelPlan one = Plan({.devices = 1, .device_bytes = 80 * kGb, .context = 1000});
  ASSERT_EQ(one.placements.size(), 1u);
  EXPECT_LT(one.placements[0].kv_bytes, 0);
  EXPECT_EQ(one.placements[0].sequences, 0);
  const int64_t need = one.placements[0].weight_bytes + one.sequence_bytes;
  EXPECT_EQ(Plan({.devices = 1, .device_bytes = need, .context = 1000}).placements[0].sequences, 1);
  EXPECT_EQ(Plan({.devices = 1, .device_bytes = need - 1, .context = 1000}).placements[0].sequences,
            0);
  EXPECT_EQ(Plan({.devices = 1, .device_bytes = need, .reserved_bytes = 1, .context = 1000})
                .placements[0]
                .sequences,
            0);
  // An uneven division is that of the fullest device; groups of attention heads stay whole.
  const ModelPlan three = Plan({.devices = 3, .device_bytes = need, .context = 1000});
  ASSERT_EQ(three.placements.size(), 2u);
  EXPECT_GT(three.placements[0].weight_bytes * 3, three.expert_bytes + three.common_bytes);
}

TEST_F(PlanTest, SizesThatCannotBeAreRefused) {
  EXPECT_THAT(PlanModel(scratch_->path(), {.devices = 0, .device_bytes = 1, .context = 1})
                  .status()
                  .message(),
              HasSubstr("0 devices"));
  EXPECT_THAT(
      PlanModel(scratch_->path(), {.device_bytes = 1, .context = 1 << 21}).status().message(),
      HasSubstr("possible: 1 to 1048576"));
  EXPECT_EQ(PlanModel("/none", {.device_bytes = 1, .context = 1}).status().code(),
            absl::StatusCode::kNotFound);
}

}  // namespace
}  // namespace reprise::engine
