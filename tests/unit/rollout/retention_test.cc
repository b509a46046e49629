// Goal: what has ended is in files and is the same for whoever asks, what may still be asked for
// stays whatever the policy, the rest goes with its calls; forks count as one with their sample.
// Method: the tiny model runs jobs over a real journal; looks of the retention one by one.
#include "rollout/retention.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "base/clock.h"
#include "replay/trajectory_state.h"
#include "rollout/delivery.h"
#include "rollout/fork.h"
#include "rollout/identity.h"
#include "rollout/record.h"
#include "rollout/text.h"
#include "tests/unit/rollout/held_sandboxes.h"
#include "tests/unit/rollout/job_files.h"
#include "tests/unit/rollout/scratch_log.h"

namespace reprise::rollout {
namespace {

using testing::HasSubstr;

constexpr char kId[] = "j/000000/0", kOther[] = "j/000001/0";
constexpr int64_t kNever = 86400;  // seconds until the thread looks by itself

std::string JobText(const std::string& top = "") {
  return top + std::string(kJobTop) + "[limits]\nmax_tokens = 8\n" +
         "[reward]\nkind = \"command\"\ncommand = [\"judge\"]\n";
}

class RetentionTest : public testing::Test {
 protected:
  RetentionTest() {
    files_.Write("tasks.jsonl",
                 "{\"id\": \"a\", \"prompt\": \"1\"}\n{\"id\": \"b\", \"prompt\": \"2\"}\n");
    Restart();
  }
  ~RetentionTest() override { End(); }
  void End() {
    if (sandboxes_) sandboxes_->Shutdown();
    table_.reset();
    sandboxes_.reset();
  }
  void Restart() {
    End();
    sandboxes_ = std::make_unique<HeldSandboxes>();
    table_ = std::make_unique<JobTable>(log_.get(), journal::DURABILITY_NONE, sandboxes_.get(),
                                        engine::EngineOptions{.threads = 1}, SchedulerOptions());
    ASSERT_EQ(table_->ResumeAll(), absl::OkStatus());
  }
  std::shared_ptr<JobRun> RunJob(const std::string& toml = JobText()) {
    auto run = table_->Submit(toml, files_.path(), "", "job.toml");
    EXPECT_TRUE(run.ok()) << run.status();
    return Completed();
  }
  std::shared_ptr<JobRun> Completed() {
    auto run = table_->Find("j");
    EXPECT_TRUE(run.ok()) << run.status();
    EXPECT_TRUE(WaitFor(**run, [&] { return (*run)->Is(journal::JOB_STATE_COMPLETED); }));
    return *run;
  }
  void Look(RetentionOptions options) {
    options.every_s = kNever;
    options.export_dir = files_.path() + "/exported";
    ASSERT_EQ(CheckRetention(options), absl::OkStatus());
    Retainer retainer(options, table_.get(), log_.get(), sandboxes_.get());
    ASSERT_EQ(retainer.Pass(), absl::OkStatus());
  }
  static RetentionOptions Tight(Retention policy) {
    RetentionOptions options;
    options.policy = policy;
    options.bytes_max = 1;
    return options;
  }
  std::string Record(const std::string& id, const JobRun& run) {
    auto entries = log_->Read(id);
    if (!entries.ok()) return Message(entries.status());
    auto record = ExportRecord(*replay::Fold(*entries), run, /*without_timing=*/false);
    return record.ok() ? *record : Message(record.status());
  }

  JobFiles files_;
  ScratchLog log_;
  std::unique_ptr<HeldSandboxes> sandboxes_;
  std::unique_ptr<JobTable> table_;
};

TEST_F(RetentionTest, InAFileATrajectoryIsWhatItWas) {
  const auto run = RunJob();
  const std::string record = Record(kId, *run);
  const std::string job = run->ToProto().mean_reward() == 1 ? "graded" : "";
  EXPECT_EQ(job, "graded");
  Look({});
  EXPECT_FALSE(log_->Head(kId)->file().empty());
  EXPECT_EQ(Record(kId, *run), record);
  Look({});  // nothing more to do
  Restart();
  const auto again = table_->Find("j");
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ(Record(kId, **again), record);
  EXPECT_EQ((*again)->ToProto().sampled_tokens(), run->ToProto().sampled_tokens());
  EXPECT_EQ((*again)->ToProto().sealed(), 2u);
  EXPECT_EQ((*again)->summary(0).reward, 1.0f);
  EXPECT_TRUE(sandboxes_->forgotten().empty());
}

TEST_F(RetentionTest, WhatIsDroppedGoesWithItsCallsAndThenItsJob) {
  RunJob();
  sandboxes_->FailForget(absl::UnavailableError("sandboxd is away"));
  Look(Tight(Retention::kDrop));
  EXPECT_TRUE(log_->Read(kId).ok()) << "as long as its calls are there";
  sandboxes_->FailForget(absl::OkStatus());
  Look(Tight(Retention::kDrop));
  EXPECT_EQ(sandboxes_->forgotten(), (std::set<std::string>{kId, "j/000000/0.judge", kOther,
                                                            "j/000001/0.judge"}));
  EXPECT_THAT(Message(log_->Read(kId).status()), HasSubstr("dropped by the retention policy"));
  auto run = table_->Find("j");
  EXPECT_EQ((*run)->ToProto().sealed(), 2u) << "its numbers stay";
  Restart();
  EXPECT_EQ((*table_->Find("j"))->ToProto().sealed(), 2u);
  Look(Tight(Retention::kDrop));
  EXPECT_TRUE(absl::IsNotFound(table_->Find("j").status()));
  EXPECT_TRUE(log_->List("")->empty());
  RunJob();  // under the same id, from the beginning
  EXPECT_TRUE(log_->Read(kId).ok());
}

TEST_F(RetentionTest, WhatATrainerMayAskForStays) {
  auto run = RunJob();
  Delivery delivery(log_.get());
  const auto first = delivery.Take(*run, 1, 1000, true);
  ASSERT_EQ(first->size(), 1u);
  Look(Tight(Retention::kDrop));
  EXPECT_TRUE(log_->Read(kId).ok()) << "it is leased";
  EXPECT_TRUE(log_->Read(kOther).ok()) << "it will be";
  ASSERT_TRUE(delivery.Ack(*run, {{first->at(0).group, first->at(0).attempt}}).ok());
  Look(Tight(Retention::kDrop));
  EXPECT_TRUE(absl::IsNotFound(log_->Read(kId).status()));
  EXPECT_TRUE(log_->Read(kOther).ok());
  EXPECT_EQ(delivery.Count(*run)->acknowledged, 1u);
  EXPECT_EQ(delivery.Count(*run)->ready, 1u);
}

TEST_F(RetentionTest, AJobsOwnWordIsForItsTrajectories) {
  const auto run = RunJob(JobText("retention = \"export\"\n"));
  const std::string record = Record(kId, *run);
  RetentionOptions options = Tight(Retention::kKeep);
  Look(options);
  const auto head = log_->Head(kId);
  ASSERT_TRUE(head.ok()) << head.status();
  ASSERT_FALSE(head->exported().empty());
  EXPECT_EQ(*base::ReadFile(head->exported()), record + "\n");
  EXPECT_TRUE(absl::IsInvalidArgument(
      table_->Submit(JobText("retention = \"forget\"\n"), files_.path(), "k", "job.toml").status()));
  RetentionOptions never;
  never.policy = Retention::kDrop;
  EXPECT_TRUE(absl::IsInvalidArgument(CheckRetention(never)));
}

TEST_F(RetentionTest, AForkRunsInItsJobAndStaysAsLongAsItsParent) {
  auto run = RunJob();
  ForkPlan plan;
  plan.number = run->NextForkNumber(0);
  plan.id = ForkId(kId, plan.number);
  plan.seed = 77;
  auto forked = ForkLog(*log_->Read(kId), plan);
  ASSERT_TRUE(forked.ok()) << forked.status();
  ASSERT_EQ(table_->AddFork("j", *forked), absl::OkStatus());
  EXPECT_FALSE(table_->AddFork("j", *forked).ok()) << "its id is taken";
  run = Completed();
  EXPECT_EQ(run->ToProto().sealed(), 3u);
  EXPECT_EQ(run->record_ids(0), (std::vector<std::string>{kId, plan.id}));
  EXPECT_EQ(run->record_ids(1), std::vector<std::string>{kOther});
  const std::string record = Record(plan.id, *run);
  EXPECT_THAT(record, HasSubstr("\"fork\":{\"parent\":\"j/000000/0\",\"at_step\":0,"));
  EXPECT_THAT(record, HasSubstr("\"rollout_id\":\"j/000000/0\",\"branch\":1,\"n_branches\":2"));
  EXPECT_THAT(record, HasSubstr("\"seed\":77"));
  Look({});
  Restart();
  run = *table_->Find("j");
  EXPECT_EQ(run->NextForkNumber(0), 2u);
  EXPECT_EQ(run->summary(2).parent_id, kId);
  EXPECT_EQ(Record(plan.id, *run), record);
  // The oldest goes first, but a sample and its forks are of one age: that of the last.
  RetentionOptions some = Tight(Retention::kDrop);
  some.bytes_max = static_cast<int64_t>(log_->Head(kId)->bytes() + log_->Head(plan.id)->bytes());
  Look(some);
  EXPECT_TRUE(log_->Read(kId).ok());
  EXPECT_TRUE(log_->Read(plan.id).ok());
  EXPECT_TRUE(absl::IsNotFound(log_->Read(kOther).status()));
}

TEST_F(RetentionTest, AForkOfARunningJobIsOneMoreOfIts) {
  sandboxes_->Hold(true);
  auto run = table_->Submit(JobText(), files_.path(), "", "job.toml");
  ASSERT_TRUE(run.ok()) << run.status();
  ASSERT_TRUE(sandboxes_->WaitCall());
  ASSERT_TRUE(WaitFor(**run, [&] { return log_->Read(kId).ok(); }));
  ForkPlan plan;
  plan.number = 1;
  plan.id = ForkId(kId, 1);
  plan.seed = 78;
  auto forked = ForkLog(*log_->Read(kId), plan);
  ASSERT_TRUE(forked.ok()) << forked.status();
  ASSERT_EQ(table_->AddFork("j", *std::move(forked)), absl::OkStatus());
  EXPECT_TRUE((*run)->Is(journal::JOB_STATE_RUNNING));
  EXPECT_FALSE((*run)->IsWhole(0));
  sandboxes_->Hold(false);
  EXPECT_EQ(Completed()->ToProto().sealed(), 3u);
  EXPECT_TRUE((*run)->IsWhole(0));
}

}  // namespace
}  // namespace reprise::rollout
