// Goal: requests that cannot be served are refused with a code and one line, and what can be looked
// at is there while a job runs and afterwards. Method: requests over the socket of a daemon without
// a usable sandbox tier.
#include <filesystem>

#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include "tests/integration/rollout_daemons.h"

namespace reprise::rollout {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::Not;

class RolloutServiceTest : public testing::Test {
 protected:
  // A supervisor that ends at once: the function tier never becomes usable.
  RolloutServiceTest() {
    std::filesystem::create_symlink("/bin/false", helpers_.path() + "/reprise-supervisor");
    daemons_ = std::make_unique<Daemons>(state_.path(), 1, helpers_.path());
  }
  static void ExpectRefused(const grpc::Status& status, grpc::StatusCode code,
                            const std::string& text) {
    EXPECT_EQ(status.error_code(), code) << status.error_message();
    EXPECT_THAT(status.error_message(), AllOf(HasSubstr(text), Not(HasSubstr("\n"))));
  }
  grpc::Status Submit(const std::string& toml, const std::string& id = "") {
    wire::SubmitRequest request;
    request.set_spec_toml(toml);
    request.set_spec_name("my.toml");
    request.set_job_id(id);
    wire::Job job;
    grpc::ClientContext context;
    return daemons_->stub()->Submit(&context, request, &job);
  }

  base::ScratchDir helpers_{"helpers"}, state_{"rollout"};
  std::unique_ptr<Daemons> daemons_;
};

TEST_F(RolloutServiceTest, JobsThatCannotRunAreRefused) {
  ExpectRefused(Submit("id ="), grpc::StatusCode::INVALID_ARGUMENT, "my.toml:1:");
  ExpectRefused(Submit(JobTop("a/b", 1, 0, 1, 1)), grpc::StatusCode::INVALID_ARGUMENT,
                "my.toml: id is \"a/b\"");
  ExpectRefused(Submit(JobTop("j", 1, 1000, 1, 1)), grpc::StatusCode::INVALID_ARGUMENT,
                "has 256 tasks, and first = 1000 leaves none of them");
  ExpectRefused(Submit(std::string((1 << 20) + 1, '#')), grpc::StatusCode::INVALID_ARGUMENT,
                "the job file has 1048577 bytes, the most is 1048576");
  ExpectRefused(Submit(JobTop("j", 1, 0, 1, 1), std::string(200, 'x')),
                grpc::StatusCode::INVALID_ARGUMENT, "allowed: 1..128 letters");
}

TEST_F(RolloutServiceTest, WhatIsUnknownIsNotFound) {
  for (const std::string& id : {std::string(), std::string("nobody"), std::string(5000, 'x'),
                                std::string("a\0b", 3), std::string("../x")}) {
    wire::GetJobRequest request;
    request.set_job_id(id);
    wire::Job job;
    grpc::ClientContext getting;
    ExpectRefused(daemons_->stub()->Get(&getting, request, &job), grpc::StatusCode::NOT_FOUND,
                  "is not known here");
    wire::PauseJobRequest pause;
    pause.set_job_id(id);
    grpc::ClientContext pausing;
    ExpectRefused(daemons_->stub()->Pause(&pausing, pause, &job), grpc::StatusCode::NOT_FOUND,
                  "is not known here");
    wire::GetTrajectoryRequest trajectory;
    trajectory.set_trajectory_id(id);
    wire::Trajectory answer;
    grpc::ClientContext reading;
    ExpectRefused(daemons_->stub()->GetTrajectory(&reading, trajectory, &answer),
                  grpc::StatusCode::NOT_FOUND, "has no log here");
  }
}

TEST_F(RolloutServiceTest, WithoutAUsableTierTrajectoriesFailAtOnceAndCanBeRead) {
  const Daemons::Ended ended =
      daemons_->Run(JobTop("notier", 1, 0, 2, 1) + "[limits]\nmax_tokens = 200\nmax_turns = 3\n");
  EXPECT_EQ(ended.job.failed(), 2u);
  ASSERT_EQ(ended.records.size(), 2u);
  for (const Json& record : ended.records) {
    EXPECT_EQ(record["status"], "failed");
    EXPECT_EQ(record["failure"]["kind"], "infra");
    EXPECT_THAT(record["failure"]["reason"].get<std::string>(),
                HasSubstr("the function tier is not usable here"));
    EXPECT_TRUE(record["reward"].is_null());
  }

  wire::ListTrajectoriesRequest list;
  wire::ListTrajectoriesResponse listed;
  grpc::ClientContext listing;
  ASSERT_TRUE(daemons_->stub()->ListTrajectories(&listing, list, &listed).ok());
  ASSERT_EQ(listed.trajectories_size(), 2);
  EXPECT_EQ(listed.trajectories(1).trajectory_id(), "notier/000001/0");
  EXPECT_EQ(listed.trajectories(1).status(), "failed");
  EXPECT_FALSE(listed.trajectories(1).has_reward());

  wire::GetTrajectoryRequest request;
  request.set_trajectory_id("notier/000001/0");
  wire::Trajectory trajectory;
  grpc::ClientContext context;
  ASSERT_TRUE(daemons_->stub()->GetTrajectory(&context, request, &trajectory).ok());
  EXPECT_EQ(Json::parse(trajectory.record_json())["digest"], ended.records[1]["digest"]);
  ASSERT_GT(trajectory.log_size(), 2);
  EXPECT_THAT(trajectory.log(0), HasSubstr("start    task test-0002 group 1 sample 0"));
  EXPECT_THAT(trajectory.log(trajectory.log_size() - 1), HasSubstr("sealed"));
}

}  // namespace
}  // namespace reprise::rollout
