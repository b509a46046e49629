// Goal: a group is with one trainer at a time, comes back when its lease ends, and never after it
// was acknowledged, whatever restarts in between. Method: deliveries over a real journal with a
// clock that the test sets, and a job whose trajectories it seals.
#include "rollout/delivery.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "rollout/text.h"
#include "tests/unit/rollout/job_files.h"
#include "tests/unit/rollout/scratch_log.h"

namespace reprise::rollout {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Pair;

constexpr int64_t kLeaseMs = 1000;
constexpr absl::StatusCode kRefused = absl::StatusCode::kFailedPrecondition;

class DeliveryTest : public testing::Test {
 protected:
  DeliveryTest() {
    files_.Write("tasks.jsonl",
                 "{\"id\": \"a\", \"prompt\": \"1\"}\n{\"id\": \"b\", \"prompt\": \"2\"}\n"
                 "{\"id\": \"c\", \"prompt\": \"3\"}\n{\"id\": \"d\", \"prompt\": \"4\"}\n");
    // Ordinals are those of the task set, also where the job begins behind its first task.
    auto job = files_.Load("group_size = 2\nfirst = 1\n" + std::string(kJobTop) + kMatchReward);
    EXPECT_TRUE(job.ok()) << job.status();
    journal::JobRecord record;
    record.set_job_id("j");
    record.set_state(journal::JOB_STATE_RUNNING);
    run_ = std::make_unique<JobRun>(*std::move(job), record);
    Restart();
  }
  void Restart() {
    delivery_ = std::make_unique<Delivery>(log_.get(), [this] { return now_us_; });
  }
  void Seal(size_t index) {
    Summary summary;
    summary.sealed = true;
    run_->Update(index, summary);
  }
  void SealGroup(size_t position) {
    Seal(2 * position);
    Seal(2 * position + 1);
  }
  // Group and attempt of each lease.
  std::vector<std::pair<uint32_t, uint64_t>> Take(uint32_t max_groups, bool in_order = false) {
    auto leases = delivery_->Take(*run_, max_groups, kLeaseMs, in_order);
    EXPECT_TRUE(leases.ok()) << leases.status();
    std::vector<std::pair<uint32_t, uint64_t>> out;
    for (const Delivery::Lease& lease : *leases) {
      EXPECT_EQ(lease.first, (lease.group - 1) * 2u);
      EXPECT_EQ(lease.until_us, now_us_ + kLeaseMs * 1000);
      out.emplace_back(lease.group, lease.attempt);
    }
    return out;
  }
  void ExpectCounts(uint32_t pending, uint32_t ready, uint32_t leased, uint32_t acknowledged) {
    auto counts = delivery_->Count(*run_);
    ASSERT_TRUE(counts.ok()) << counts.status();
    EXPECT_EQ(counts->pending, pending);
    EXPECT_EQ(counts->ready, ready);
    EXPECT_EQ(counts->leased, leased);
    EXPECT_EQ(counts->acknowledged, acknowledged);
  }

  int64_t now_us_ = 1'700'000'000'000'000;
  JobFiles files_;
  ScratchLog log_;
  std::unique_ptr<JobRun> run_;
  std::unique_ptr<Delivery> delivery_;
};

TEST_F(DeliveryTest, OnlyWholeGroupsLeaveAndEachToOne) {
  Seal(0);
  EXPECT_THAT(Take(8), IsEmpty());
  Seal(1);
  Seal(4);
  EXPECT_THAT(Take(8), ElementsAre(Pair(1, 1)));
  EXPECT_THAT(Take(8), IsEmpty());
  Seal(5);
  ExpectCounts(1, 1, 1, 0);
  EXPECT_THAT(Take(8, true), IsEmpty());  // group 2 holds it up
  EXPECT_THAT(Take(8), ElementsAre(Pair(3, 1)));
  SealGroup(1);
  EXPECT_THAT(Take(8, true), ElementsAre(Pair(2, 1)));
  ExpectCounts(0, 0, 3, 0);
}

TEST_F(DeliveryTest, AtMostAsManyAsAskedInOrder) {
  for (size_t position : {2, 0, 1}) SealGroup(position);
  EXPECT_THAT(Take(2), ElementsAre(Pair(1, 1), Pair(2, 1)));
  EXPECT_THAT(Take(2), ElementsAre(Pair(3, 1)));
}

TEST_F(DeliveryTest, AnEndedLeaseComesBackAndItsOldHolderIsFencedOff) {
  SealGroup(0);
  EXPECT_THAT(Take(1), ElementsAre(Pair(1, 1)));
  now_us_ += kLeaseMs * 1000 - 1;
  EXPECT_THAT(Take(1), IsEmpty());
  now_us_ += 1;
  EXPECT_THAT(Take(1), ElementsAre(Pair(1, 2)));
  absl::Status late = delivery_->Ack(*run_, {{1, 1}});
  EXPECT_EQ(late.code(), kRefused);
  EXPECT_THAT(Message(late), HasSubstr("lease 1 of group 1 of job j is not its last, which is 2"));
  EXPECT_EQ(delivery_->Release(*run_, {{1, 1}}).code(), kRefused);
  EXPECT_EQ(delivery_->Ack(*run_, {{1, 3}}).code(), kRefused);
  ASSERT_TRUE(delivery_->Ack(*run_, {{1, 2}}).ok());
  EXPECT_TRUE(delivery_->Ack(*run_, {{1, 2}}).ok());  // the answer was lost: asked again
  EXPECT_EQ(delivery_->Ack(*run_, {{1, 1}}).code(), kRefused);
  EXPECT_EQ(delivery_->Release(*run_, {{1, 2}}).code(), kRefused);
  now_us_ += 1000 * kMaxLeaseMs;
  EXPECT_THAT(Take(1), IsEmpty());
  ExpectCounts(2, 0, 0, 1);
}

TEST_F(DeliveryTest, AnEndedLeaseThatNobodyElseGotIsStillGood) {
  SealGroup(0);
  EXPECT_THAT(Take(1), ElementsAre(Pair(1, 1)));
  now_us_ += 10 * kLeaseMs * 1000;
  EXPECT_TRUE(delivery_->Ack(*run_, {{1, 1}}).ok());
}

TEST_F(DeliveryTest, AReleasedGroupComesBackAtOnceUnderANewNumber) {
  SealGroup(0);
  EXPECT_THAT(Take(1), ElementsAre(Pair(1, 1)));
  ASSERT_TRUE(delivery_->Release(*run_, {{1, 1}}).ok());
  EXPECT_EQ(delivery_->Ack(*run_, {{1, 1}}).code(), kRefused);
  EXPECT_THAT(Take(1), ElementsAre(Pair(1, 3)));
}

TEST_F(DeliveryTest, SettlingIsAllOrNone) {
  SealGroup(0);
  SealGroup(1);
  EXPECT_THAT(Take(2), ElementsAre(Pair(1, 1), Pair(2, 1)));
  EXPECT_EQ(delivery_->Ack(*run_, {{1, 1}, {2, 9}}).code(), kRefused);
  EXPECT_EQ(delivery_->Ack(*run_, {{1, 1}, {3, 1}}).code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(delivery_->Ack(*run_, {{1, 1}, {0, 1}}).code(), absl::StatusCode::kNotFound);
  ExpectCounts(1, 0, 2, 0);
  EXPECT_TRUE(delivery_->Ack(*run_, {{1, 1}, {2, 1}}).ok());
  ExpectCounts(1, 0, 0, 2);
}

TEST_F(DeliveryTest, ARestartForgetsNoLeaseAndNoAcknowledgement) {
  for (size_t position : {0, 1, 2}) SealGroup(position);
  EXPECT_THAT(Take(3), ElementsAre(Pair(1, 1), Pair(2, 1), Pair(3, 1)));
  ASSERT_TRUE(delivery_->Ack(*run_, {{2, 1}}).ok());
  ASSERT_TRUE(delivery_->Release(*run_, {{3, 1}}).ok());
  Restart();
  ExpectCounts(0, 1, 1, 1);
  EXPECT_THAT(Take(3), ElementsAre(Pair(3, 3)));
  now_us_ += kLeaseMs * 1000;
  Restart();
  EXPECT_THAT(Take(3), ElementsAre(Pair(1, 2), Pair(3, 4)));
  EXPECT_EQ(delivery_->Ack(*run_, {{1, 1}}).code(), kRefused);
  EXPECT_TRUE(delivery_->Ack(*run_, {{2, 1}, {1, 2}, {3, 4}}).ok());
  Restart();
  ExpectCounts(0, 0, 0, 3);
}

TEST_F(DeliveryTest, AClockThatWasSetBackHoldsNoLeaseForEver) {
  SealGroup(0);
  EXPECT_THAT(Take(1), ElementsAre(Pair(1, 1)));
  now_us_ -= 2000 * kMaxLeaseMs;
  EXPECT_THAT(Take(1), ElementsAre(Pair(1, 2)));
}

TEST_F(DeliveryTest, AJobWhoseFilesAreGoneIsNotDelivered) {
  journal::JobRecord record;
  record.set_job_id("j");
  JobRun reading(record, {"j/000001/0"}, absl::FailedPreconditionError("the task set changed"));
  auto taken = delivery_->Take(reading, 1, kLeaseMs, false);
  EXPECT_EQ(taken.status().code(), kRefused);
  EXPECT_THAT(Message(taken.status()), HasSubstr("the task set changed"));
}

TEST_F(DeliveryTest, GroupsOfAgentsOutsideAreDeliveredLikeOthers) {
  journal::JobRecord record;
  record.set_job_id("outside");
  record.set_state(journal::JOB_STATE_RUNNING);
  record.mutable_external()->set_group_size(2);
  JobRun run(record);
  auto seal = [&](const std::string& group, const std::string& name) {
    auto index = run.Place(group, name);
    ASSERT_TRUE(index.ok()) << index.status();
    Summary summary;
    summary.sealed = true;
    run.Update(*index, summary);
  };
  auto take = [&] {
    auto leases = delivery_->Take(run, 10, kLeaseMs, false);
    EXPECT_TRUE(leases.ok()) << leases.status();
    std::vector<std::pair<uint32_t, uint64_t>> out;
    for (const Delivery::Lease& lease : *leases) out.emplace_back(lease.group, lease.attempt);
    return out;
  };
  seal("g", "a");
  seal("h", "c");
  EXPECT_THAT(take(), IsEmpty());  // each group has a place that nobody took
  seal("h", "d");
  EXPECT_THAT(take(), ElementsAre(Pair(1, 1)));
  seal("g", "b");
  EXPECT_THAT(take(), ElementsAre(Pair(0, 1)));
  ASSERT_TRUE(delivery_->Ack(run, {{1, 1}}).ok());
  now_us_ += kLeaseMs * 1000 + 1;
  Restart();
  EXPECT_THAT(take(), ElementsAre(Pair(0, 2)));
  EXPECT_EQ(delivery_->Ack(run, {{0, 1}}).code(), kRefused);
  EXPECT_TRUE(delivery_->Ack(run, {{0, 2}}).ok());
  EXPECT_EQ(delivery_->Count(run)->acknowledged, 2u);
}

TEST_F(DeliveryTest, ADroppedGroupIsWithNobody) {
  files_.Write("tasks.jsonl", "{\"id\": \"a\", \"prompt\": \"1\"}\n");
  auto job = files_.Load("group_size = 2\non_invalid = \"replace\"\nreplacements = 1\n" +
                         std::string(kJobTop) + kMatchReward);
  ASSERT_TRUE(job.ok()) << job.status();
  journal::JobRecord record;
  record.set_job_id("j");
  record.set_state(journal::JOB_STATE_RUNNING);
  JobRun run(*std::move(job), record);
  Summary good, bad;
  bad.valid = false;
  bad.retriable = true;
  EXPECT_EQ(run.Seal(0, good), JobRun::After::kStands);
  EXPECT_EQ(run.Seal(1, bad), JobRun::After::kReplaced);
  EXPECT_EQ(run.trajectory_id(1), "j/000000/1.r1");
  EXPECT_EQ(run.replaced_ids(1), std::vector<std::string>{"j/000000/1"});
  EXPECT_EQ(delivery_->Count(run)->pending, 1u);
  EXPECT_EQ(run.Seal(1, bad), JobRun::After::kDropsItsGroup);
  EXPECT_TRUE(run.AllSealed());
  EXPECT_EQ(delivery_->Count(run)->dropped, 1u);
  EXPECT_TRUE(delivery_->Take(run, 10, kLeaseMs, false)->empty());
  EXPECT_EQ(run.ToProto().dropped_groups(), 1u);
  EXPECT_EQ(run.ToProto().replaced(), 1u);
}

}  // namespace
}  // namespace reprise::rollout
