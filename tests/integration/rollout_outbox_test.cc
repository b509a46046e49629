// Goal: a trainer that never acknowledges stops a job with a bound at that bound, says so, and
// loses nothing; groups go on coming once it does. Method: a job with more groups than the bound,
// leases that are kept, given back and settled, and restarts in between.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include "tests/integration/judge_support.h"
#include "tests/integration/weights_support.h"

namespace reprise::rollout {
namespace {

using testing::HasSubstr;

constexpr uint32_t kGroups = 5, kSamples = 2, kBound = 2;

class RolloutOutboxTest : public testing::Test {
 protected:
  RolloutOutboxTest() {
    Restart();
    daemon_->Submit(
        HotJob("j", files_.path(), kGroups, 16, fmt::format("max_unacknowledged = {}\n", kBound)));
  }
  void Restart() {
    daemon_.reset();
    daemon_ = std::make_unique<Rolloutd>(state_.path());
  }
  struct Leased {
    std::vector<std::string> lines;
    std::vector<wire::LeasedGroup> groups;
    wire::LeaseSummary summary;
  };
  // Waits for the first.
  Leased Lease() {
    wire::LeaseRequest request;
    request.set_job_id("j");
    request.set_max_groups(kGroups);
    request.set_lease_ms(3'600'000);
    request.set_wait_ms(60'000);
    return Take(request);
  }
  Leased Take(const wire::LeaseRequest& request) {
    grpc::ClientContext context;
    auto reader = daemon_->stub()->Lease(&context, request);
    Leased leased;
    for (wire::LeaseAnswer answer; reader->Read(&answer);) {
      if (answer.has_summary()) leased.summary = answer.summary();
      if (!answer.has_record()) continue;
      if (leased.lines.size() % kSamples == 0) {
        leased.groups.emplace_back();
        leased.groups.back().set_group(answer.record().group());
        leased.groups.back().set_attempt(answer.record().attempt());
      }
      leased.lines.push_back(answer.record().json());
    }
    EXPECT_TRUE(reader->Finish().ok());
    return leased;
  }
  void Settle(const std::vector<wire::LeasedGroup>& groups, bool acknowledge) {
    wire::SettleRequest request;
    request.set_job_id("j");
    for (const wire::LeasedGroup& group : groups) *request.add_groups() = group;
    grpc::ClientContext context;
    wire::SettleAnswer answer;
    grpc::Status status = acknowledge ? daemon_->stub()->Ack(&context, request, &answer)
                                      : daemon_->stub()->Release(&context, request, &answer);
    EXPECT_TRUE(status.ok()) << status.error_message();
  }
  // Waits until the job has sealed as many and says that it waits.
  void ExpectHeldAt(uint32_t sealed) {
    wire::Job job = daemon_->Get("j");
    while (job.state() == "running" &&
           (job.sealed() < sealed || job.message().find("acknowledged") == std::string::npos))
      job = daemon_->Get("j");
    EXPECT_EQ(job.state(), "running");
    EXPECT_EQ(job.sealed(), sealed);
    EXPECT_THAT(job.message(), HasSubstr("2 wait to be acknowledged"));
  }

  base::ScratchDir state_{"state"}, files_{"files"};
  std::unique_ptr<Rolloutd> daemon_;
};

TEST_F(RolloutOutboxTest, ATrainerThatNeverAcknowledgesStopsItsJobAndLosesNothing) {
  ExpectHeldAt(kBound * kSamples);
  Restart();
  ExpectHeldAt(kBound * kSamples);
  Leased first = Lease();
  EXPECT_EQ(first.groups.size(), kBound);
  // Leased is not acknowledged, and neither is given back.
  ExpectHeldAt(kBound * kSamples);
  EXPECT_EQ(first.summary.leased(), kBound);
  EXPECT_EQ(first.summary.pending(), kGroups - kBound);
  Settle(first.groups, /*acknowledge=*/false);
  Leased again = Lease();
  EXPECT_EQ(again.lines, first.lines);

  Settle({again.groups[0]}, /*acknowledge=*/true);
  ExpectHeldAt((kBound + 1) * kSamples);
  Restart();
  ExpectHeldAt((kBound + 1) * kSamples);
  Settle({again.groups[1]}, /*acknowledge=*/true);
  for (uint32_t left = kGroups - kBound; left > 0;) {
    Leased more = Lease();
    ASSERT_FALSE(more.groups.empty());
    left -= static_cast<uint32_t>(more.groups.size());
    Settle(more.groups, /*acknowledge=*/true);
  }
  wire::Job job = daemon_->Get("j");
  while (job.state() == "running") job = daemon_->Get("j");
  EXPECT_EQ(job.state(), "completed");
  EXPECT_EQ(job.message(), "");
}

}  // namespace
}  // namespace reprise::rollout
