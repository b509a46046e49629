// Goal: jobs are taken once, go on after a restart, and stop when told to. Method: the table on a
// real journal and the tiny model; sandboxes that answer at once, or only when let.
#include "rollout/job_table.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/synchronization/notification.h"
#include "rollout/text.h"
#include "tests/unit/rollout/held_sandboxes.h"
#include "tests/unit/rollout/job_files.h"
#include "tests/unit/rollout/play.h"
#include "tests/unit/rollout/scratch_log.h"

namespace reprise::rollout {
namespace {

using testing::HasSubstr;

const std::string kCommandJob = std::string(kJobTop) + "[limits]\nmax_tokens = 8\n" +
                                "[reward]\nkind = \"command\"\ncommand = [\"judge\"]\n";

class JobTableTest : public testing::Test {
 protected:
  void SetUp() override { Restart(); }
  void TearDown() override { End(); }
  void End() {
    if (sandboxes_) sandboxes_->Shutdown();
    table_.reset();
    sandboxes_.reset();
  }
  void Restart() {
    End();
    sandboxes_ = std::make_unique<HeldSandboxes>();
    table_ =
        std::make_unique<JobTable>(log_.get(), journal::DURABILITY_NONE, sandboxes_.get(),
                                   engine::EngineOptions{.threads = 1}, SchedulerOptions());
  }
  absl::StatusOr<std::shared_ptr<JobRun>> Submit(const std::string& toml,
                                                 const std::string& id = "") {
    return table_->Submit(toml, files_.path(), id, "job.toml");
  }
  static bool WaitState(const JobRun& run, journal::JobState state) {
    return WaitFor(run, [&] { return run.Is(state); });
  }

  JobFiles files_;
  ScratchLog log_;
  std::unique_ptr<HeldSandboxes> sandboxes_;
  std::unique_ptr<JobTable> table_;
};

TEST_F(JobTableTest, TheSameContentIsTheSameJob) {
  auto first = Submit(kCommandJob);
  ASSERT_TRUE(first.ok()) << first.status();
  auto again = Submit(kCommandJob);
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ(first->get(), again->get());
  ASSERT_TRUE(WaitState(**first, journal::JOB_STATE_COMPLETED));
  Restart();
  ASSERT_TRUE(table_->ResumeAll().ok());
  auto later = Submit(kCommandJob);
  ASSERT_TRUE(later.ok()) << later.status();
  EXPECT_TRUE((*later)->Is(journal::JOB_STATE_COMPLETED));
  EXPECT_EQ((*later)->decoded, 0u);
  EXPECT_EQ(table_->List()->size(), 1u);

  absl::Status other = Submit(kCommandJob + "\n# more\n").status();
  EXPECT_EQ(other.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(Message(other), HasSubstr("job \"j\" exists with another job file, task set"));
  auto named = Submit(kCommandJob, "other");
  ASSERT_TRUE(named.ok()) << named.status();
  EXPECT_EQ((*named)->id(), "other");
  ASSERT_TRUE(WaitState(**named, journal::JOB_STATE_COMPLETED));
}

TEST_F(JobTableTest, ARefusedJobLeavesNothing) {
  EXPECT_EQ(Submit("id = 5\n").status().code(), absl::StatusCode::kInvalidArgument);
  files_.Write("empty", "");
  std::filesystem::create_directory(files_.path() + "/nothing");
  std::string toml = kCommandJob;
  toml.replace(toml.find("\"model\""), 7, "\"nothing\"");
  EXPECT_THAT(Message(Submit(toml).status()), HasSubstr("nothing/config.json"));
  EXPECT_TRUE(table_->List()->empty());
  absl::Status unknown = table_->Pause("nobody");
  EXPECT_EQ(unknown.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(Message(unknown), HasSubstr("`reprise rollout ls` lists"));
}

TEST_F(JobTableTest, PausedJobsWaitAndResumedOnesEnd) {
  sandboxes_->Hold(true);
  auto run = Submit(kCommandJob);
  ASSERT_TRUE(run.ok()) << run.status();
  ASSERT_TRUE(sandboxes_->WaitCall());
  ASSERT_TRUE(table_->Pause("j").ok());
  EXPECT_EQ(table_->Pause("j").code(), absl::StatusCode::kFailedPrecondition);
  sandboxes_->Hold(false);
  // The call that was under way is recorded; nothing after it leaves the process.
  ASSERT_TRUE(WaitFor(**run, [&] {
    auto entries = log_->Read("j/000000/0");
    return entries.ok() && entries->back().has_reward();
  }));
  EXPECT_TRUE((*run)->Is(journal::JOB_STATE_PAUSED));
  EXPECT_FALSE((*run)->AllSealed());
  ASSERT_TRUE(table_->Resume("j").ok());
  ASSERT_TRUE(WaitState(**run, journal::JOB_STATE_COMPLETED));
  EXPECT_EQ((*run)->summary(0).reward, 1.0f);
}

TEST_F(JobTableTest, SlowRewardCommandsHoldUpNoTool) {
  sandboxes_->HoldRewards(true);
  // More than there are threads for reward commands.
  auto slow = Submit(std::string("group_size = ") + std::to_string(kGradeThreads + 4) + "\n" +
                     kJobTop + "[limits]\nmax_tokens = 8\nmax_in_flight = 64\n" +
                     "[reward]\nkind = \"command\"\ncommand = [\"judge\"]\n");
  ASSERT_TRUE(slow.ok()) << slow.status();
  ASSERT_TRUE(WaitFor(**slow, [&] { return sandboxes_->calls() == kGradeThreads; }));
  auto quick = Submit("group_size = 4\n" + std::string(kJobTop) +
                          "[sampling]\nstructured = true\ntool_choice = \"required\"\n" +
                          "[limits]\nmax_tokens = 260\nmax_turns = 3\n" + kShTool + kMatchReward,
                      "quick");
  ASSERT_TRUE(quick.ok()) << quick.status();
  ASSERT_TRUE(WaitState(**quick, journal::JOB_STATE_COMPLETED));
  EXPECT_GT(sandboxes_->calls(), static_cast<size_t>(kGradeThreads));
  for (size_t i = 0; i < (*slow)->size(); ++i) EXPECT_FALSE((*slow)->IsSealed(i));
  sandboxes_->HoldRewards(false);
  ASSERT_TRUE(WaitState(**slow, journal::JOB_STATE_COMPLETED));
  for (size_t i = 0; i < (*slow)->size(); ++i) EXPECT_EQ((*slow)->summary(i).reward, 1.0f);
}

TEST_F(JobTableTest, CancelledJobsAreSealedAsAborted) {
  sandboxes_->Hold(true);
  auto run = Submit("group_size = 3\n" + kCommandJob);
  ASSERT_TRUE(run.ok()) << run.status();
  ASSERT_TRUE(sandboxes_->WaitCall());
  ASSERT_TRUE(table_->Cancel("j").ok());
  ASSERT_TRUE(WaitFor(**run, [&] { return (*run)->AllSealed(); }));
  for (size_t i = 0; i < 3; ++i) {
    EXPECT_EQ((*run)->summary(i).status, "aborted");
    EXPECT_FALSE((*run)->summary(i).has_reward);
  }
  EXPECT_EQ(table_->Cancel("j").code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(table_->Resume("j").code(), absl::StatusCode::kFailedPrecondition);
}

TEST_F(JobTableTest, UnfinishedJobsGoOnAfterARestart) {
  sandboxes_->Hold(true);
  auto run = Submit(kCommandJob);
  ASSERT_TRUE(run.ok()) << run.status();
  ASSERT_TRUE(sandboxes_->WaitCall());
  size_t tokens = (*run)->summary(0).tokens;
  Restart();
  ASSERT_TRUE(table_->ResumeAll().ok());
  run = table_->Find("j");
  ASSERT_TRUE(run.ok()) << run.status();
  ASSERT_TRUE(WaitState(**run, journal::JOB_STATE_COMPLETED));
  EXPECT_EQ((*run)->summary(0).tokens, tokens);
  EXPECT_EQ((*run)->resumed, 1u);
  EXPECT_EQ((*run)->decoded_again, 0u);
}

TEST_F(JobTableTest, AJobWhoseTasksChangedFailsWithTheReasonAndCanComeBack) {
  sandboxes_->Hold(true);
  auto run = Submit(kCommandJob);
  ASSERT_TRUE(run.ok()) << run.status();
  ASSERT_TRUE(sandboxes_->WaitCall());
  files_.Write("tasks.jsonl", "{\"id\": \"t\", \"prompt\": \"Other.\"}\n");
  Restart();
  ASSERT_TRUE(table_->ResumeAll().ok());
  run = table_->Find("j");
  ASSERT_TRUE(run.ok()) << run.status();
  EXPECT_TRUE((*run)->Is(journal::JOB_STATE_FAILED));
  EXPECT_THAT((*run)->record().message(), HasSubstr("the task set or a tool definition changed"));
  EXPECT_EQ((*run)->spec(), nullptr);
  files_.Write("tasks.jsonl", kOneTask);
  ASSERT_TRUE(table_->Resume("j").ok());
  run = table_->Find("j");
  ASSERT_TRUE(run.ok());
  ASSERT_TRUE(WaitState(**run, journal::JOB_STATE_COMPLETED));
}

}  // namespace
}  // namespace reprise::rollout
