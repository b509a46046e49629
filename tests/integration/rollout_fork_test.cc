// Goal: a fork shares its parent's log up to a step and goes on as its own: another seed, a sandbox
// as the parent's was, delivered and exported with it, over restarts. Method: the tiny model calls
// `sh` in both daemons; forks of trajectories that have ended.
#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include "tests/integration/rollout_daemons.h"

namespace reprise::rollout {
namespace {

using testing::HasSubstr;

constexpr int kTasks = 4;

class RolloutForkTest : public testing::Test {
 protected:
  void SetUp() override {
    if (::geteuid() != 0) GTEST_SKIP() << "the function tier needs root";
    Restart();
  }
  void Restart() {
    daemons_.reset();
    daemons_ = std::make_unique<Daemons>(state_.path(), 1);
  }
  grpc::Status Fork(const std::string& id, uint32_t at_step, wire::ForkedTrajectory* made) {
    wire::ForkTrajectoryRequest request;
    request.set_trajectory_id(id);
    request.set_at_step(at_step);
    grpc::ClientContext context;
    return daemons_->stub()->ForkTrajectory(&context, request, made);
  }
  wire::Trajectory Show(const std::string& id) {
    wire::GetTrajectoryRequest request;
    request.set_trajectory_id(id);
    wire::Trajectory shown;
    grpc::ClientContext context;
    const grpc::Status status = daemons_->stub()->GetTrajectory(&context, request, &shown);
    EXPECT_TRUE(status.ok()) << status.error_message();
    return shown;
  }

  base::ScratchDir state_{"rollout"};
  std::unique_ptr<Daemons> daemons_;
};

TEST_F(RolloutForkTest, AForkSharesAPrefixAndIsDeliveredWithItsParent) {
  const Daemons::Ended before =
      daemons_->Run(JobTop("j", 1, 0, kTasks, 1) + "[limits]\nmax_tokens = 400\nmax_turns = 2\n" +
                    ShTool("[\"/bin/sh\", \"-c\", \"echo $REPRISE_CALL_ID\"]"));
  ASSERT_EQ(before.records.size(), size_t{kTasks});
  // One that has a call whose result it went on after.
  const Json* parent = nullptr;
  for (const Json& record : before.records) {
    if (record["timing"]["calls"].size() > 0 && parent == nullptr) parent = &record;
  }
  ASSERT_NE(parent, nullptr) << "no task called the tool";
  const std::string id = (*parent)["rollout_id"];

  wire::ForkedTrajectory first, second;
  grpc::Status status = Fork(id, 1, &first);
  ASSERT_TRUE(status.ok()) << status.error_message();
  EXPECT_EQ(first.trajectory_id(), id + ".f1");
  EXPECT_GE(first.shared_calls(), 1u);
  Restart();  // with the fork wherever it is
  status = Fork(id, 0, &second);
  ASSERT_TRUE(status.ok()) << status.error_message();
  EXPECT_EQ(second.trajectory_id(), id + ".f2");
  EXPECT_EQ(second.shared_calls(), 0u);

  const Daemons::Ended after = daemons_->Finish("j");
  EXPECT_EQ(after.job.state(), "completed");
  ASSERT_EQ(after.records.size(), size_t{kTasks} + 2);
  int forks = 0;
  for (const Json& record : after.records) {
    EXPECT_EQ(record["n_branches"], record["rollout_id"] == id ? 3 : 1);
    if (!record.contains("fork")) continue;
    ++forks;
    EXPECT_EQ(record["fork"]["parent"], id);
    EXPECT_EQ(record["group_id"], (*parent)["group_id"]);
    EXPECT_EQ(record["rollout_id"], id);
    EXPECT_EQ(record["branch"], forks);
    EXPECT_NE(record["seed"], (*parent)["seed"]);
    EXPECT_NE(record["status"], "failed") << record.dump();
  }
  EXPECT_EQ(forks, 2);

  const wire::Trajectory shown = Show(first.trajectory_id()), origin = Show(id);
  EXPECT_EQ(shown.parent_id(), id);
  EXPECT_EQ(shown.at_step(), 1u);
  ASSERT_GT(shown.log_size(), 1);
  EXPECT_THAT(shown.log(0), HasSubstr("branched from " + id + " at step 1"));
  // Up to the step it is the same log.
  int same = 1;
  while (same < shown.log_size() && same < origin.log_size() && shown.log(same) == origin.log(same))
    ++same;
  EXPECT_GE(same, 4) << "turn, call, result, result's tokens";

  // A group has all of them, and is whole once.
  wire::LeaseRequest lease;
  lease.set_job_id("j");
  lease.set_max_groups(kTasks);
  grpc::ClientContext context;
  auto reader = daemons_->stub()->Lease(&context, lease);
  wire::LeaseAnswer answer;
  std::vector<std::string> delivered;
  while (reader->Read(&answer)) {
    if (!answer.has_record()) continue;
    if (answer.record().trajectory_id().starts_with(id)) {
      delivered.push_back(answer.record().trajectory_id());
      EXPECT_EQ(answer.record().group_size(), 3u);
    }
  }
  EXPECT_TRUE(reader->Finish().ok());
  EXPECT_EQ(delivered, (std::vector<std::string>{id, id + ".f1", id + ".f2"}));
  wire::ForkedTrajectory none;
  status = Fork(id, 0, &none);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  EXPECT_THAT(status.error_message(), HasSubstr("is leased"));
}

TEST_F(RolloutForkTest, AStepThatIsNotThereIsRefused) {
  daemons_->Run(JobTop("j", 1, 0, 1, 1) + "[limits]\nmax_tokens = 24\n");
  wire::ForkedTrajectory none;
  const grpc::Status status = Fork("j/000000/0", 7, &none);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  EXPECT_THAT(status.error_message(), HasSubstr("step 7 is not one of its"));
  EXPECT_EQ(Fork("nobody/000000/0", 0, &none).error_code(), grpc::StatusCode::NOT_FOUND);
  EXPECT_EQ(daemons_->Get("j").state(), "completed");
}

}  // namespace
}  // namespace reprise::rollout
