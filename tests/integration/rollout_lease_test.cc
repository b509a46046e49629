// Goal: a trainer gets whole groups with the bytes of the export, gets back what it did not
// acknowledge, and never what it did, also over a restart of the daemons. Method: leases over the
// socket of both daemons on the tiny model.
#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <sstream>

#include "tests/integration/rollout_daemons.h"

namespace reprise::rollout {
namespace {

using testing::HasSubstr;

constexpr int kGroups = 3, kSamples = 2;

struct Leased {
  grpc::Status status;
  std::vector<std::string> lines;  // records in the order of arrival
  std::vector<wire::LeasedGroup> groups;
  wire::LeaseSummary summary;
};

class RolloutLeaseTest : public testing::Test {
 protected:
  RolloutLeaseTest() { Restart(); }
  void Restart() {
    daemons_.reset();
    daemons_ = std::make_unique<Daemons>(state_.path(), 1);
  }
  void RunJob() {
    std::istringstream exported(daemons_
                                    ->Run(JobTop("j", 1, 4, kGroups, kSamples) +
                                          "[limits]\nmax_tokens = 24\n" +
                                          "[reward]\nkind = \"match\"\nanswer = \"4\"\n")
                                    .bytes);
    for (std::string line; std::getline(exported, line);) lines_.push_back(line);
    ASSERT_EQ(lines_.size(), size_t{kGroups * kSamples});
  }
  Leased Lease(uint32_t max_groups, int64_t lease_ms = 0, int64_t wait_ms = 0) {
    wire::LeaseRequest request;
    request.set_job_id("j");
    request.set_max_groups(max_groups);
    request.set_lease_ms(lease_ms);
    request.set_wait_ms(wait_ms);
    grpc::ClientContext context;
    auto reader = daemons_->stub()->Lease(&context, request);
    Leased leased;
    wire::LeaseAnswer answer;
    while (reader->Read(&answer)) {
      if (answer.has_summary()) {
        leased.summary = answer.summary();
        continue;
      }
      EXPECT_EQ(answer.record().group_size(), uint32_t{kSamples});
      if (leased.lines.size() % kSamples == 0) {
        leased.groups.emplace_back();
        leased.groups.back().set_group(answer.record().group());
        leased.groups.back().set_attempt(answer.record().attempt());
      }
      EXPECT_EQ(answer.record().group(), leased.groups.back().group());
      leased.lines.push_back(answer.record().json());
    }
    leased.status = reader->Finish();
    return leased;
  }
  grpc::Status Ack(const std::vector<wire::LeasedGroup>& groups) {
    wire::SettleRequest request;
    request.set_job_id("j");
    for (const wire::LeasedGroup& group : groups) *request.add_groups() = group;
    grpc::ClientContext context;
    wire::SettleAnswer answer;
    return daemons_->stub()->Ack(&context, request, &answer);
  }
  std::vector<std::string> LinesOf(int first, int groups) const {
    return {lines_.begin() + first * kSamples, lines_.begin() + (first + groups) * kSamples};
  }

  base::ScratchDir state_{"rollout"};
  std::unique_ptr<Daemons> daemons_;
  std::vector<std::string> lines_;  // of the export
};

TEST_F(RolloutLeaseTest, GroupsComeBackWithTheSameBytesUntilTheyAreAcknowledged) {
  RunJob();
  Leased first = Lease(1);
  ASSERT_TRUE(first.status.ok()) << first.status.error_message();
  EXPECT_EQ(first.lines, LinesOf(0, 1));
  EXPECT_EQ(first.groups[0].group(), 4u);
  EXPECT_EQ(first.summary.ready(), 2u);
  EXPECT_EQ(first.summary.leased(), 1u);
  EXPECT_EQ(first.summary.job_state(), "completed");
  // A lease that ends almost at once: waiting gets the same groups again.
  Leased second = Lease(2, 1);
  EXPECT_EQ(second.lines, LinesOf(1, 2));
  Leased again = Lease(2, 0, 60000);
  EXPECT_EQ(again.lines, second.lines);
  EXPECT_EQ(again.groups[0].attempt(), 2u);

  grpc::Status late = Ack({second.groups[0]});
  EXPECT_EQ(late.error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  EXPECT_THAT(late.error_message(), HasSubstr("is not its last"));
  EXPECT_TRUE(Ack({first.groups[0]}).ok());

  Restart();
  Leased nothing = Lease(kGroups);
  EXPECT_TRUE(nothing.lines.empty());
  EXPECT_EQ(nothing.summary.leased(), 2u);
  EXPECT_EQ(nothing.summary.acknowledged(), 1u);
  EXPECT_EQ(Ack({second.groups[1]}).error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  EXPECT_TRUE(Ack(again.groups).ok());
  EXPECT_EQ(Lease(kGroups).summary.acknowledged(), 3u);
}

TEST_F(RolloutLeaseTest, ReleasedGroupsComeBackAtOnce) {
  RunJob();
  Leased all = Lease(kGroups);
  EXPECT_EQ(all.lines, lines_);
  wire::SettleRequest request;
  request.set_job_id("j");
  *request.add_groups() = all.groups[1];
  grpc::ClientContext context;
  wire::SettleAnswer answer;
  ASSERT_TRUE(daemons_->stub()->Release(&context, request, &answer).ok());
  EXPECT_EQ(Ack({all.groups[1]}).error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  EXPECT_EQ(Lease(kGroups).lines, LinesOf(1, 1));
}

TEST_F(RolloutLeaseTest, WhatIsOutOfRangeIsRefused) {
  EXPECT_EQ(Lease(1).status.error_code(), grpc::StatusCode::NOT_FOUND);
  RunJob();
  for (const Leased& refused :
       {Lease(1025), Lease(1, -1), Lease(1, 604800001), Lease(1, 0, 60001), Lease(1, 0, -1)}) {
    EXPECT_EQ(refused.status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
    EXPECT_THAT(refused.status.error_message(), HasSubstr("allowed: 0.."));
  }
  EXPECT_EQ(Ack(std::vector<wire::LeasedGroup>(1025)).error_code(),
            grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(Ack(std::vector<wire::LeasedGroup>(1)).error_code(), grpc::StatusCode::NOT_FOUND);
  EXPECT_EQ(Lease(kGroups).lines, lines_);
}

}  // namespace
}  // namespace reprise::rollout
