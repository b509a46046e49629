// Goal: a fork's log is its parent's up to a step, whichever step, and begins as its own. Method: a
// log of two turns with calls, cut at every step.
#include "rollout/fork.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "replay/trajectory_state.h"
#include "rollout/identity.h"

namespace reprise::rollout {
namespace {

using Entry = journal::TrajectoryEntry;
using testing::HasSubstr;

constexpr char kParent[] = "j/000001/0";

Entry Sampled(uint64_t position, int count) {
  Entry entry;
  entry.mutable_sampled()->set_position(position);
  for (int i = 0; i < count; ++i) {
    entry.mutable_sampled()->add_ids(i + 1);
    entry.mutable_sampled()->add_logprobs(-1);
  }
  return entry;
}

// Turn 0: tokens 2..5 and a call, its result 5..7; turn 1: 7..9; sealed.
std::vector<Entry> Parent() {
  std::vector<Entry> log(1);
  log[0].mutable_start()->set_trajectory_id(kParent);
  log[0].mutable_start()->set_job_id("j");
  log[0].mutable_start()->set_seed(7);
  log[0].mutable_start()->add_prompt_ids(1);
  log[0].mutable_start()->add_prompt_ids(2);
  log.push_back(Sampled(2, 1));
  log.push_back(Sampled(3, 2));
  log.emplace_back().mutable_issued()->set_call_id("j/000001/0/0/0");
  log.back().mutable_issued()->set_span_begin(2);
  log.back().mutable_issued()->set_span_end(5);
  log.emplace_back().mutable_done()->set_call_id("j/000001/0/0/0");
  log.back().mutable_done()->set_outcome(::reprise::sandbox::v1::OUTCOME_EXITED);
  log.emplace_back().mutable_fed()->set_position(5);
  log.back().mutable_fed()->add_ids(8);
  log.back().mutable_fed()->add_ids(9);
  log.back().mutable_fed()->add_call_ids("j/000001/0/0/0");
  log.emplace_back().mutable_resumed()->set_at_token(7);
  log.push_back(Sampled(7, 2));
  log.emplace_back().mutable_reward()->set_has_value(true);
  log.emplace_back().mutable_sealed()->set_status("completed");
  return log;
}

ForkPlan At(uint32_t step) {
  ForkPlan plan;
  plan.id = ForkId(kParent, 1);
  plan.number = 1;
  plan.at_step = step;
  plan.seed = 99;
  return plan;
}

TEST(Fork, SharesTheLogUpToAStep) {
  const std::vector<Entry> parent = Parent();
  const auto at0 = ForkLog(parent, At(0));
  ASSERT_TRUE(at0.ok()) << at0.status();
  ASSERT_EQ(at0->size(), 1u);
  EXPECT_EQ((*at0)[0].start().fork().shared_tokens(), 2u);
  EXPECT_EQ((*at0)[0].start().fork().last_call_id(), "");

  const auto at1 = ForkLog(parent, At(1));
  ASSERT_TRUE(at1.ok()) << at1.status();
  ASSERT_EQ(at1->size(), 7u);
  for (size_t i = 1; i < at1->size(); ++i)
    EXPECT_EQ((*at1)[i].SerializeAsString(), parent[i].SerializeAsString()) << i;
  const journal::TrajectoryStart& start = (*at1)[0].start();
  EXPECT_EQ(start.trajectory_id(), "j/000001/0.f1");
  EXPECT_EQ(start.seed(), 99u);
  EXPECT_EQ(start.fork().parent_id(), kParent);
  EXPECT_EQ(start.fork().shared_tokens(), 7u);
  EXPECT_EQ(start.fork().last_call_id(), "j/000001/0/0/0");
  EXPECT_EQ(start.fork().sandbox_id(), kParent);
  EXPECT_TRUE(replay::Fold(*at1).ok());
}

TEST(Fork, TheLastTurnIsNoStepToGoOnFrom) {
  const auto at2 = ForkLog(Parent(), At(2));
  EXPECT_TRUE(absl::IsFailedPrecondition(at2.status()));
  EXPECT_THAT(std::string(at2.status().message()), HasSubstr("allowed: 0..1"));
  EXPECT_TRUE(absl::IsFailedPrecondition(ForkLog(Parent(), At(9)).status()));
}

TEST(Fork, NamesAndSeedsAreItsOwn) {
  EXPECT_EQ(ForkNumberOf(ForkId(kParent, 12)), 12u);
  EXPECT_EQ(ForkNumberOf(kParent), 0u);
  EXPECT_EQ(ForkNumberOf("a.f3/000001/0"), 0u) << "of a job's name";
  EXPECT_EQ(AttemptOf(ForkId(kParent, 2)), 0u);
  EXPECT_EQ(TrajectoryOfCall("j/000001/0.f1/3/0"), "j/000001/0.f1");
  EXPECT_NE(ForkSeed(1, "t", 0, 1), ForkSeed(1, "t", 0, 2));
  EXPECT_NE(ForkSeed(1, "t", 0, 1), TrajectorySeed(1, "t", 0));
}

}  // namespace
}  // namespace reprise::rollout
