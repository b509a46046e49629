// Goal: a job's numbers and states are those of its logs. Method: states set in every order,
// summaries replaced many times, logs read back.
#include "rollout/job_run.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "rollout/text.h"
#include "tests/unit/rollout/play.h"
#include "tests/unit/rollout/scratch_log.h"

namespace reprise::rollout {
namespace {

using testing::HasSubstr;

class JobRunTest : public testing::Test {
 protected:
  std::unique_ptr<JobRun> Run() {
    auto job = files_.Load("group_size = 2\n" + std::string(kJobTop) + kMatchReward);
    EXPECT_TRUE(job.ok()) << job.status();
    journal::JobRecord record;
    record.set_job_id("j");
    record.set_state(journal::JOB_STATE_RUNNING);
    return std::make_unique<JobRun>(*std::move(job), record);
  }

  JobFiles files_;
  ScratchLog log_;
};

TEST_F(JobRunTest, StatesGoForwardOnceAndAreDurable) {
  auto run = Run();
  ASSERT_TRUE(run->SetState(log_.get(), journal::JOB_STATE_PAUSED, "").ok());
  EXPECT_EQ(log_->GetJob("j")->state(), journal::JOB_STATE_PAUSED);
  EXPECT_EQ(Message(run->SetState(log_.get(), journal::JOB_STATE_PAUSED, "")),
            "job j is paused already");
  ASSERT_TRUE(run->SetState(log_.get(), journal::JOB_STATE_FAILED, "why").ok());
  ASSERT_TRUE(run->SetState(log_.get(), journal::JOB_STATE_RUNNING, "").ok());
  ASSERT_TRUE(run->SetState(log_.get(), journal::JOB_STATE_CANCELLED, "").ok());
  for (auto state : {journal::JOB_STATE_RUNNING, journal::JOB_STATE_PAUSED,
                     journal::JOB_STATE_FAILED, journal::JOB_STATE_COMPLETED}) {
    EXPECT_EQ(run->SetState(log_.get(), state, "").code(), absl::StatusCode::kFailedPrecondition);
  }
  EXPECT_EQ(log_->GetJob("j")->state(), journal::JOB_STATE_CANCELLED);
}

TEST_F(JobRunTest, NumbersFollowTheSummaries) {
  auto run = Run();
  Summary summary;
  summary.tokens = 10;
  summary.prompt = 4;
  summary.sampled = 5;
  summary.calls = 1;
  run->Update(0, summary);
  summary.sealed = summary.has_reward = true;
  summary.reward = 0.5f;
  summary.sampled = 6;
  run->Update(0, summary);
  wire::Job job = run->ToProto();
  EXPECT_EQ(job.trajectories(), 2u);
  EXPECT_EQ(job.sealed(), 1u);
  EXPECT_EQ(job.sampled_tokens(), 6u);
  EXPECT_EQ(job.fed_tokens(), 0u);
  EXPECT_EQ(job.tool_calls(), 1u);
  EXPECT_EQ(job.mean_reward(), 0.5);
  EXPECT_FALSE(run->AllSealed());
  Summary failed;
  failed.sealed = failed.failed = true;
  failed.sealed_us = 77;
  run->Update(1, failed);
  job = run->ToProto();
  EXPECT_TRUE(run->AllSealed());
  EXPECT_EQ(job.failed(), 1u);
  EXPECT_EQ(job.rewarded(), 1u);
  EXPECT_EQ(job.mean_reward(), 0.5);  // a trajectory without reward is no 0
  EXPECT_EQ(job.completed_us(), 77);
}

TEST_F(JobRunTest, EveryChangeIsSeen) {
  auto run = Run();
  uint64_t seen = run->version();
  EXPECT_FALSE(run->WaitChange(seen, absl::ZeroDuration()));
  run->Update(0, Summary());
  EXPECT_TRUE(run->WaitChange(seen, absl::InfiniteDuration()));
}

TEST_F(JobRunTest, LogsComeBackAsSummariesAndUnfinishedStates) {
  auto job = files_.Load("group_size = 2\n" + std::string(kJobTop) + kMatchReward);
  ASSERT_TRUE(job.ok());
  Player player(*std::move(job));
  auto start = player.logic().Begin(player.plan());
  ASSERT_TRUE(log_->AppendAll({{"j/000000/0", 0, *start}}).ok());
  start->mutable_start()->set_trajectory_id("j/000000/1");
  ASSERT_TRUE(log_->AppendAll({{"j/000000/1", 0, *start},
                               {"j/000000/1", 1, SealEntry("aborted", "", "", "")}})
                  .ok());
  auto run = Run();
  ASSERT_TRUE(run->ReadLogs(log_.get()).ok());
  EXPECT_EQ(run->unfinished().size(), 1u);
  EXPECT_EQ(run->unfinished().count(0), 1u);
  EXPECT_TRUE(run->summary(1).sealed);
  EXPECT_EQ(run->summary(0).status, "running");
  EXPECT_TRUE(run->CheckEngine(Player::LogDigest()).ok());
  absl::Status other = run->CheckEngine("another");
  EXPECT_EQ(other.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(Message(other), HasSubstr("trajectory j/000000/0 was begun with another model"));
}

}  // namespace
}  // namespace reprise::rollout
