// Goal: a group is delivered whole or not at all when one of its samples cannot be used, by the
// policy of its job, and comes out the same whatever was killed on the way. Method: a judge that
// fails for chosen samples, and rolloutd killed at each point where that is found out.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include "tests/integration/judge_support.h"
#include "tests/integration/weights_support.h"

namespace reprise::rollout {
namespace {

constexpr char kReplace[] = "on_invalid = \"replace\"\nreplacements = 2\n";
constexpr char kDrop[] = "on_invalid = \"drop_group\"\n";

class RolloutInvalidTest : public testing::Test {
 protected:
  using Answer = std::optional<http::Response>;

  void Start(const std::string& fail_point = "") {
    daemon_.reset();
    daemon_ = std::make_unique<Rolloutd>(state_->path(), fail_point);
  }
  void Submit(const JudgeServer& judge, const std::string& policy, int groups = 2) {
    daemon_->Submit(JudgedJob("j", files_.path(), groups, 2, judge.url(),
                              "attempts = 1\ntimeout_ms = 60000\n", policy, 3));
  }
  std::vector<Json> Export(bool dropped) {
    wire::ExportRequest request;
    request.set_job_id("j");
    request.set_without_timing(true);
    request.set_dropped(dropped);
    grpc::ClientContext context;
    auto reader = daemon_->stub()->Export(&context, request);
    std::vector<Json> records;
    for (wire::ExportedTrajectory out; reader->Read(&out);)
      records.push_back(Json::parse(out.json()));
    EXPECT_TRUE(reader->Finish().ok());
    return records;
  }
  // Ids, in the order of the file.
  static std::vector<std::string> Ids(const std::vector<Json>& records) {
    std::vector<std::string> ids;
    for (const Json& record : records) ids.push_back(record["rollout_id"]);
    return ids;
  }
  wire::LeaseSummary Lease(std::vector<std::string>* ids) {
    wire::LeaseRequest request;
    request.set_job_id("j");
    request.set_max_groups(100);
    grpc::ClientContext context;
    auto reader = daemon_->stub()->Lease(&context, request);
    wire::LeaseSummary summary;
    for (wire::LeaseAnswer answer; reader->Read(&answer);) {
      if (answer.has_summary()) summary = answer.summary();
      if (answer.has_record()) ids->push_back(answer.record().trajectory_id());
    }
    EXPECT_TRUE(reader->Finish().ok());
    return summary;
  }

  std::unique_ptr<base::ScratchDir> state_ = std::make_unique<base::ScratchDir>("state");
  base::ScratchDir files_{"files"};
  std::unique_ptr<Rolloutd> daemon_;
};

TEST_F(RolloutInvalidTest, AFreshSampleStandsForOneThatCannotBeUsed) {
  JudgeServer judge([](const JudgeServer::Question& question) -> Answer {
    const std::string id = question.body["trajectory_id"];
    if (id == "j/000000/1" || id == "j/000001/0" || id == "j/000001/0.r1")
      return http::ErrorResponse(500, "broken");
    return Judgement(1);
  });
  Start();
  Submit(judge, kReplace);
  daemon_->Finish("j");
  const std::vector<Json> records = Export(false), replaced = Export(true);
  EXPECT_EQ(Ids(records), (std::vector<std::string>{"j/000000/0", "j/000000/1.r1", "j/000001/0.r2",
                                                    "j/000001/1"}));
  EXPECT_EQ(Ids(replaced), (std::vector<std::string>{"j/000000/1", "j/000001/0", "j/000001/0.r1"}));
  for (const Json& record : records) EXPECT_EQ(record["reward"], 1.0);
  for (const Json& record : replaced) EXPECT_EQ(record["failure"]["kind"], "grader");
  EXPECT_EQ(records[1]["attempt"], 1);
  EXPECT_EQ(records[1]["sample_idx"], 1);
  EXPECT_EQ(records[1]["prompt_ids"], replaced[0]["prompt_ids"]);
  EXPECT_NE(records[1]["seed"], replaced[0]["seed"]);
  EXPECT_NE(records[1]["token_ids"], replaced[0]["token_ids"]);
  EXPECT_EQ(daemon_->Get("j").replaced(), 3u);
  EXPECT_EQ(daemon_->Get("j").dropped_groups(), 0u);
  std::vector<std::string> leased;
  EXPECT_EQ(Lease(&leased).dropped(), 0u);
  EXPECT_EQ(leased, Ids(records));
}

TEST_F(RolloutInvalidTest, ADroppedGroupIsDeliveredToNobodyAndHoldsUpNobody) {
  // The sibling's judge never answers: dropping its group ends it.
  JudgeServer judge([](const JudgeServer::Question& question) -> Answer {
    const std::string id = question.body["trajectory_id"];
    if (id == "j/000000/0") return std::nullopt;
    if (id == "j/000000/1") return http::JsonResponse(200, "null");
    return Judgement(1);
  });
  Start();
  Submit(judge, kDrop);
  daemon_->Finish("j");
  EXPECT_EQ(Ids(Export(false)), (std::vector<std::string>{"j/000001/0", "j/000001/1"}));
  const std::vector<Json> dropped = Export(true);
  ASSERT_EQ(Ids(dropped), (std::vector<std::string>{"j/000000/0", "j/000000/1"}));
  EXPECT_EQ(dropped[0]["stop_reason"], "dropped");
  EXPECT_EQ(dropped[1]["failure"]["kind"], "grader");
  for (int restarts = 0; restarts < 2; ++restarts) {
    EXPECT_EQ(daemon_->Get("j").dropped_groups(), 1u);
    EXPECT_EQ(daemon_->Get("j").state(), "completed");
    Start();
  }
  std::vector<std::string> leased;
  wire::LeaseSummary summary = Lease(&leased);
  EXPECT_EQ(leased, (std::vector<std::string>{"j/000001/0", "j/000001/1"}));
  EXPECT_EQ(summary.dropped(), 1u);
  EXPECT_EQ(summary.ready() + summary.pending(), 0u);
}

TEST_F(RolloutInvalidTest, ASampleThatFailsEveryTimeDropsItsGroup) {
  JudgeServer judge([](const JudgeServer::Question& question) -> Answer {
    if (question.body["group"] == 1 && question.body["sample"] == 1)
      return http::ErrorResponse(500, "broken");
    return Judgement(0);
  });
  Start();
  Submit(judge, kReplace);
  daemon_->Finish("j");
  EXPECT_EQ(Ids(Export(false)), (std::vector<std::string>{"j/000000/0", "j/000000/1"}));
  EXPECT_EQ(Ids(Export(true)), (std::vector<std::string>{"j/000001/0", "j/000001/1",
                                                         "j/000001/1.r1", "j/000001/1.r2"}));
  EXPECT_EQ(daemon_->Get("j").dropped_groups(), 1u);
}

TEST_F(RolloutInvalidTest, TheSameGroupsComeOutWhateverWasKilled) {
  auto answer = [](const JudgeServer::Question& question) -> Answer {
    const std::string id = question.body["trajectory_id"];
    if (id == "j/000000/1" || id == "j/000001/0" || id == "j/000001/0.r1" ||
        id.starts_with("j/000002/1"))
      return http::ErrorResponse(500, "broken");
    return Judgement(1);
  };
  JudgeServer calm(answer);
  Start();
  Submit(calm, kReplace, 3);
  daemon_->Finish("j");
  const std::vector<Json> whole = Export(false);
  EXPECT_EQ(Ids(whole), (std::vector<std::string>{"j/000000/0", "j/000000/1.r1", "j/000001/0.r2",
                                                  "j/000001/1"}));
  for (const char* point :
       {"trajectory.invalid:1", "trajectory.invalid:4", "trajectory.invalid:6",
        "trajectory.sealed:2", "rollout.judge.before:4", "rollout.judge.after:5"}) {
    SCOPED_TRACE(point);
    JudgeServer judge(answer);
    daemon_.reset();
    state_ = std::make_unique<base::ScratchDir>("state");
    Start(point);
    Submit(judge, kReplace, 3);
    daemon_->WaitKilled();
    Start();
    daemon_->Finish("j");
    EXPECT_EQ(Export(false), whole);
    EXPECT_EQ(daemon_->Get("j").dropped_groups(), 1u);
    // Nothing that was judged is judged again but for what the kill took out of a hand.
    int again = 0;
    for (const auto& [key, count] : judge.asked()) again += count - 1;
    EXPECT_LE(again, 3);
  }
}

}  // namespace
}  // namespace reprise::rollout
