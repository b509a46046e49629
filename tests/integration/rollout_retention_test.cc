// Goal: a trajectory that has ended is the same in a file as it was in the journal for whoever
// asks, over restarts; by policy it goes, with its calls, and never one that a trainer may still
// ask for. Method: the tiny model calls `sh` in both daemons; looks of the retention at every
// second.
#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <functional>
#include <map>
#include <sstream>

#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "sandboxd/client/sandbox_client.h"
#include "tests/integration/rollout_daemons.h"

namespace reprise::rollout {
namespace {

using testing::HasSubstr;

constexpr int kGroups = 3, kSamples = 2;
constexpr absl::Duration kPatience = absl::Seconds(60);

class RolloutRetentionTest : public testing::Test {
 protected:
  void SetUp() override {
    if (::geteuid() != 0) GTEST_SKIP() << "the function tier needs root";
  }
  void Start(RetentionOptions retention) {
    daemons_.reset();
    retention.every_s = 1;
    daemons_ = std::make_unique<Daemons>(state_.path(), 1, REPRISE_BIN_DIR, retention);
  }
  // A job whose trajectories have calls; its records.
  Daemons::Ended RunJob(const std::string& top = "") {
    return daemons_->Run(JobTop("j", 1, 0, kGroups, kSamples) + top +
                         "[limits]\nmax_tokens = 400\nmax_turns = 2\nmax_in_flight = 8\n" +
                         ShTool("[\"/bin/sh\", \"-c\", \"echo $REPRISE_CALL_ID\"]"));
  }
  size_t Files() const {
    std::error_code none;
    size_t files = 0;
    for (const auto& file :
         std::filesystem::directory_iterator(state_.path() + "/rolloutd/archive", none))
      files += file.path().extension() == ".traj";
    return files;
  }
  static bool WaitFor(const std::function<bool()>& reached) {
    for (const absl::Time end = absl::Now() + kPatience; absl::Now() < end;) {
      if (reached()) return true;
      absl::SleepFor(absl::Milliseconds(50));
    }
    return false;
  }
  grpc::Status Show(const std::string& id, wire::Trajectory* shown) {
    wire::GetTrajectoryRequest request;
    request.set_trajectory_id(id);
    grpc::ClientContext context;
    return daemons_->stub()->GetTrajectory(&context, request, shown);
  }
  // The records of the next groups, and what acknowledges them.
  std::vector<std::string> Lease(uint32_t max_groups, wire::SettleRequest* settle) {
    wire::LeaseRequest request;
    request.set_job_id("j");
    request.set_max_groups(max_groups);
    grpc::ClientContext context;
    auto reader = daemons_->stub()->Lease(&context, request);
    std::vector<std::string> lines;
    wire::LeaseAnswer answer;
    std::map<uint32_t, uint64_t> attempts;
    while (reader->Read(&answer)) {
      if (!answer.has_record()) continue;
      lines.push_back(answer.record().json());
      attempts[answer.record().group()] = answer.record().attempt();
    }
    const grpc::Status status = reader->Finish();
    EXPECT_TRUE(status.ok()) << status.error_message();
    settle->set_job_id("j");
    for (const auto& [group, attempt] : attempts) {
      settle->add_groups()->set_group(group);
      settle->mutable_groups()->rbegin()->set_attempt(attempt);
    }
    return lines;
  }
  void Ack(const wire::SettleRequest& settle) {
    grpc::ClientContext context;
    wire::SettleAnswer answer;
    const grpc::Status status = daemons_->stub()->Ack(&context, settle, &answer);
    EXPECT_TRUE(status.ok()) << status.error_message();
  }
  // OK when sandboxd still has the calls of a trajectory.
  absl::Status CallsOf(const std::string& id) {
    sandboxd::ClientOptions options;
    options.address = daemons_->sandbox_address();
    auto client = sandboxd::SandboxClient::Connect(options);
    EXPECT_TRUE(client.ok()) << client.status();
    return (*client)->ListCalls(id, absl::Now() + kPatience).status();
  }
  static std::vector<std::string> Lines(const std::string& bytes) {
    std::istringstream in(bytes);
    std::vector<std::string> lines;
    for (std::string line; std::getline(in, line);) lines.push_back(line);
    return lines;
  }
  static std::string Id(int group, int sample) {
    return "j/00000" + std::to_string(group) + "/" + std::to_string(sample);
  }

  base::ScratchDir state_{"rollout"};
  std::unique_ptr<Daemons> daemons_;
};

TEST_F(RolloutRetentionTest, InAFileItIsTheSameForWhoeverAsks) {
  Start({});
  const Daemons::Ended before = RunJob();
  ASSERT_EQ(before.records.size(), size_t{kGroups * kSamples});
  wire::Trajectory whole;
  ASSERT_TRUE(Show(Id(0, 0), &whole).ok());
  ASSERT_TRUE(WaitFor([&] { return Files() == kGroups * kSamples; })) << Files();
  for (const bool restart : {false, true}) {
    SCOPED_TRACE(restart);
    if (restart) Start({});
    EXPECT_EQ(daemons_->Finish("j").bytes, before.bytes);
    wire::Trajectory shown;
    ASSERT_TRUE(Show(Id(0, 0), &shown).ok());
    EXPECT_EQ(shown.SerializeAsString(), whole.SerializeAsString());
    const wire::Job job = daemons_->Get("j");
    EXPECT_EQ(job.sealed(), before.job.sealed());
    EXPECT_EQ(job.sampled_tokens(), before.job.sampled_tokens());
    EXPECT_EQ(job.tool_calls(), before.job.tool_calls());
    EXPECT_EQ(job.mean_reward(), before.job.mean_reward());
    wire::VerifyTrajectoryRequest verify;
    verify.set_trajectory_id(Id(0, 0));
    wire::Verification verified;
    grpc::ClientContext context;
    const grpc::Status status = daemons_->stub()->VerifyTrajectory(&context, verify, &verified);
    EXPECT_TRUE(status.ok()) << status.error_message();
    EXPECT_FALSE(verified.diverged()) << verified.DebugString();
  }
  wire::SettleRequest all;
  EXPECT_EQ(Lease(kGroups, &all), Lines(before.bytes));
}

TEST_F(RolloutRetentionTest, WhatATrainerMayStillAskForStaysAndTheRestGoesWithItsCalls) {
  Start({});
  const std::vector<std::string> lines = Lines(RunJob().bytes);
  wire::SettleRequest first;
  ASSERT_EQ(Lease(1, &first).size(), size_t{kSamples});
  Ack(first);
  RetentionOptions drop;
  drop.policy = Retention::kDrop;
  drop.bytes_max = 1;
  Start(drop);
  wire::Trajectory shown;
  ASSERT_TRUE(
      WaitFor([&] { return !Show(Id(0, 0), &shown).ok() && !Show(Id(0, 1), &shown).ok(); }));
  EXPECT_TRUE(WaitFor([&] { return Files() == (kGroups - 1) * kSamples; })) << Files();
  const grpc::Status gone = Show(Id(0, 1), &shown);
  EXPECT_EQ(gone.error_code(), grpc::StatusCode::NOT_FOUND);
  EXPECT_TRUE(absl::IsNotFound(CallsOf(Id(0, 1)))) << CallsOf(Id(0, 1));
  EXPECT_TRUE(Show(Id(1, 0), &shown).ok());
  // Those that nobody leased yet are delivered as they were.
  wire::SettleRequest rest;
  EXPECT_EQ(Lease(kGroups, &rest), std::vector<std::string>(lines.begin() + kSamples, lines.end()));
  EXPECT_EQ(daemons_->Get("j").sealed(), uint32_t{kGroups * kSamples});
  // With the last of them the job goes, and its id is free.
  Ack(rest);
  ASSERT_TRUE(WaitFor([&] {
    grpc::ClientContext context;
    wire::GetJobRequest request;
    request.set_job_id("j");
    wire::Job job;
    return daemons_->stub()->Get(&context, request, &job).error_code() ==
           grpc::StatusCode::NOT_FOUND;
  }));
  EXPECT_EQ(Files(), 0u);
  // The calls run again, under the same ids: nothing of them is known any more.
  Start({});
  EXPECT_EQ(RunJob().records.size(), size_t{kGroups * kSamples});
}

TEST_F(RolloutRetentionTest, AnExportedRecordIsTheOneThatWasDelivered) {
  RetentionOptions daemon;
  daemon.bytes_max = 1;
  daemon.policy = Retention::kDrop;
  daemon.after_s = 1000;  // the job itself stays known meanwhile
  Start(daemon);
  const Daemons::Ended ended = RunJob("retention = \"export\"\n");
  ASSERT_TRUE(WaitFor([&] {
    wire::Trajectory shown;
    return !Show(Id(kGroups - 1, kSamples - 1), &shown).ok();
  }));
  size_t records = 0;
  for (const auto& file :
       std::filesystem::directory_iterator(state_.path() + "/rolloutd/exported")) {
    const std::string record = *base::ReadFile(file.path());
    EXPECT_THAT(ended.bytes, HasSubstr(record));
    ++records;
  }
  EXPECT_EQ(records, size_t{kGroups * kSamples});
  EXPECT_EQ(daemons_->Finish("j").bytes, ended.bytes) << "exported again, from the records";
}

}  // namespace
}  // namespace reprise::rollout
