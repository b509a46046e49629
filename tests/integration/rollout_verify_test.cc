// Goal: a trajectory whose tools are deterministic verifies, and one whose tool tells the time
// diverges at its first call, with both results. Method: the tiny model calls `sh`; the stored
// calls run again in a fresh sandbox of the function tier.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include "tests/integration/rollout_daemons.h"

namespace reprise::rollout {
namespace {

constexpr char kLimits[] = "[limits]\nmax_tokens = 400\nmax_turns = 2\nmax_in_flight = 4\n";

class RolloutVerifyTest : public testing::Test {
 protected:
  void SetUp() override {
    if (::geteuid() != 0) GTEST_SKIP() << "the function tier needs root";
    daemons_ = std::make_unique<Daemons>(state_.path());
  }
  // The verification of each trajectory of a job with this tool.
  std::vector<wire::Verification> VerifyAll(const std::string& id, const std::string& script) {
    const std::string command = "[\"/bin/sh\", \"-c\", \"" + script + "\"]";
    Daemons::Ended ended = daemons_->Run(JobTop(id, 1, 0, 4, 1) + kLimits + ShTool(command));
    wire::ListTrajectoriesRequest which;
    which.set_job_id(id);
    wire::ListTrajectoriesResponse list;
    grpc::ClientContext list_context;
    EXPECT_TRUE(daemons_->stub()->ListTrajectories(&list_context, which, &list).ok());
    std::vector<wire::Verification> all;
    for (const wire::Trajectory& one : list.trajectories()) {
      wire::VerifyTrajectoryRequest request;
      request.set_trajectory_id(one.trajectory_id());
      grpc::ClientContext context;
      grpc::Status status =
          daemons_->stub()->VerifyTrajectory(&context, request, &all.emplace_back());
      EXPECT_TRUE(status.ok()) << status.error_message();
      EXPECT_EQ(all.back().trajectory_id(), one.trajectory_id());
    }
    return all;
  }

  base::ScratchDir state_{"rollout"};
  std::unique_ptr<Daemons> daemons_;
};

TEST_F(RolloutVerifyTest, ADeterministicTrajectoryVerifies) {
  uint32_t verified = 0;
  for (const wire::Verification& one : VerifyAll("same", "echo $REPRISE_CALL_ID; exit 3")) {
    EXPECT_FALSE(one.diverged()) << one.DebugString();
    verified += one.verified();
  }
  EXPECT_GT(verified, 0u);
}

TEST_F(RolloutVerifyTest, ATrajectoryWhoseToolTellsTheTimeDivergesAtItsFirstCall) {
  size_t diverged = 0;
  for (const wire::Verification& one : VerifyAll("clock", "date +%s.%N")) {
    EXPECT_EQ(one.verified(), 0u);
    if (!one.diverged()) continue;
    ++diverged;
    EXPECT_EQ(one.field(), "result");
    EXPECT_NE(one.stored(), one.found());
    EXPECT_FALSE(one.stored().empty());
    EXPECT_THAT(one.call_id(), testing::StartsWith(one.trajectory_id() + "/"));
  }
  EXPECT_GT(diverged, 0u);
}

TEST_F(RolloutVerifyTest, AnUnknownTrajectoryIsNotFound) {
  wire::VerifyTrajectoryRequest request;
  request.set_trajectory_id("none/000000/0");
  wire::Verification answer;
  grpc::ClientContext context;
  grpc::Status status = daemons_->stub()->VerifyTrajectory(&context, request, &answer);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::NOT_FOUND) << status.error_message();
}

}  // namespace
}  // namespace reprise::rollout
