// Goal: what an HTTP judge says is the reward, once for each trajectory whatever dies, and a judge
// that is dead, slow or talks nonsense gives no reward, never 0. Method: rolloutd as a process,
// judges in the test.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>

#include "tests/integration/judge_support.h"
#include "tests/integration/weights_support.h"

namespace reprise::rollout {
namespace {

using testing::HasSubstr;
using testing::StartsWith;

class RolloutJudgeTest : public testing::Test {
 protected:
  void Start(const std::string& fail_point = "") {
    daemon_.reset();
    daemon_ = std::make_unique<Rolloutd>(state_.path(), fail_point);
  }

  base::ScratchDir state_{"state"}, files_{"files"};
  std::unique_ptr<Rolloutd> daemon_;
};

TEST_F(RolloutJudgeTest, RewardsAreWhatTheJudgeSaid) {
  std::map<std::string, Json> questions;
  absl::Mutex mutex;
  JudgeServer judge([&](const JudgeServer::Question& question) {
    EXPECT_EQ(question.authorization, "Bearer s3cret");
    absl::MutexLock lock(&mutex);
    questions[question.body["trajectory_id"]] = question.body;
    EXPECT_EQ(question.key, question.body["id"]);
    if (question.body["metadata"]["row"] == 0) return http::JsonResponse(200, "-1.5");
    return http::JsonResponse(
        200, R"({"reward": 0.25, "components": {"style": 2}, "metadata": {"why": ["short"]}})");
  });
  std::ofstream(files_.path() + "/token") << "s3cret\n";
  Start();
  daemon_->Submit(JudgedJob("j", files_.path(), 2, 2, judge.url(),
                            fmt::format("token_file = \"{}/token\"\n", files_.path())));
  std::vector<Json> records = daemon_->Finish("j");
  ASSERT_EQ(records.size(), 4u);
  for (const Json& record : records) {
    const bool first = record["group_ordinal"] == 0;
    EXPECT_EQ(record["reward"], first ? -1.5 : 0.25);
    EXPECT_EQ(record["reward_components"], first ? Json::object() : Json({{"style", 2.0}}));
    EXPECT_EQ(record["reward_metadata"], first ? Json() : Json({{"why", {"short"}}}));
    EXPECT_EQ(record["failure"], Json());
    const Json& question = questions[record["rollout_id"]];
    EXPECT_EQ(question["token_ids"], record["token_ids"]);
    EXPECT_EQ(question["prompt_len"], record["prompt_len"]);
    EXPECT_EQ(question["messages"], record["messages"]);
    EXPECT_EQ(question["status"], record["status"]);
    EXPECT_EQ(question["stop_reason"], record["stop_reason"]);
    EXPECT_EQ(question["task"]["id"], record["task"]["key"]);
  }
}

TEST_F(RolloutJudgeTest, WhatIsNoJudgementIsNeverAZero) {
  JudgeServer judge([](const JudgeServer::Question& question) -> std::optional<http::Response> {
    switch (question.body["metadata"]["row"].get<int>()) {
      case 0:
        return http::ErrorResponse(500, "broken");
      case 1:
        return http::JsonResponse(200, "reward: 1");
      case 2:
        return http::JsonResponse(200, R"({"reward": NaN})");
      case 3:
        return http::JsonResponse(200, "[" + std::string(2u << 20, ' ') + "1]");
      case 4:
        return http::JsonResponse(200, "null");
      case 5:
        return std::nullopt;
      case 6:
        return http::ErrorResponse(404, "who?");
      case 7:
        return http::JsonResponse(200, R"({"reward": 1e39})");
      case 8:
        return http::JsonResponse(200, R"({"score": 1})");
      default:
        return Judgement(0);
    }
  });
  const std::vector<std::string> why = {
      "the judge answered with status 500 (attempt 2)",
      "the judge's answer is ",
      "the judge's answer is ",
      "answered with more than 1048576 bytes",
      "the judge's answer is null",
      "did not answer within 300 ms (attempt 2)",
      "the judge answered with status 404",
      "the judge's reward is no finite float32",
      "the judge's answer has no \"reward\"",
  };
  Start();
  daemon_->Submit(JudgedJob("j", files_.path(), 10, 1, judge.url(),
                            "timeout_ms = 300\nattempts = 2\n", "", 16));
  std::vector<Json> records = daemon_->Finish("j");
  ASSERT_EQ(records.size(), 10u);
  for (size_t i = 0; i < why.size(); ++i) {
    SCOPED_TRACE(i);
    EXPECT_EQ(records[i]["reward"], Json());
    EXPECT_EQ(records[i]["valid"], false);
    ASSERT_TRUE(records[i]["failure"].is_object());
    EXPECT_EQ(records[i]["failure"]["kind"], "grader");
    EXPECT_THAT(records[i]["failure"]["reason"].get<std::string>(), HasSubstr(why[i]));
  }
  EXPECT_EQ(records[9]["reward"], 0.0);
  EXPECT_EQ(records[9]["valid"], true);
  for (const auto& [key, count] : judge.asked()) {
    const bool again = key == "j/000000/0/reward/0" || key == "j/000005/0/reward/0";
    EXPECT_EQ(count, again ? 2 : 1) << key;
  }
}

TEST_F(RolloutJudgeTest, AJudgeThatComesBackIsAskedAgain) {
  std::string url;
  {
    JudgeServer gone([](const JudgeServer::Question&) { return Judgement(1); });
    url = gone.url();
  }
  Start();
  daemon_->Submit(JudgedJob("dead", files_.path(), 1, 1, url, "attempts = 2\n"));
  std::vector<Json> records = daemon_->Finish("dead");
  EXPECT_EQ(records.at(0)["reward"], Json());
  EXPECT_THAT(records.at(0)["failure"]["reason"].get<std::string>(), HasSubstr("refused"));

  JudgeServer judge([](const JudgeServer::Question& question) {
    return question.attempt == 1 ? http::ErrorResponse(503, "starting") : Judgement(0.5);
  });
  daemon_->Submit(JudgedJob("late", files_.path(), 1, 2, judge.url()));
  for (const Json& record : daemon_->Finish("late")) EXPECT_EQ(record["reward"], 0.5);
}

TEST_F(RolloutJudgeTest, RecordsTellWhatTokensWereDrawnFromAndTheirAdvantage) {
  JudgeServer judge([](const JudgeServer::Question& question) {
    const int sample = question.body["sample"];
    return sample == 2 ? http::JsonResponse(200, "null") : Judgement(sample);
  });
  Start();
  daemon_->Submit(JudgedJob("j", files_.path(), 1, 3, judge.url(),
                            "[output]\nkept_ids = 40\nadvantage = true\n"));
  std::vector<Json> records = daemon_->Finish("j");
  ASSERT_EQ(records.size(), 3u);
  for (const Json& record : records) {
    const auto tokens = record["token_ids"].get<std::vector<int32_t>>();
    const auto offsets = record["kept_offsets"].get<std::vector<size_t>>();
    const auto kept = record["kept_ids"].get<std::vector<int32_t>>();
    ASSERT_EQ(offsets.size(), tokens.size() + 1);
    EXPECT_EQ(offsets.front(), 0u);
    EXPECT_EQ(offsets.back(), kept.size());
    for (size_t i = 0; i < tokens.size(); ++i) {
      const auto begin = kept.begin() + static_cast<ptrdiff_t>(offsets[i]);
      const auto end = kept.begin() + static_cast<ptrdiff_t>(offsets[i + 1]);
      const bool sampled = record["loss_mask"][i] == 1;
      ASSERT_EQ(end - begin, sampled ? 40 : 0) << i;
      EXPECT_TRUE(std::is_sorted(begin, end));
      EXPECT_EQ(std::binary_search(begin, end, tokens[i]), sampled) << i;
    }
    EXPECT_EQ(record["top_k"], 40);
    EXPECT_TRUE(record["cached_tokens"].is_number());
  }
  // (r - 0.5) / (sqrt(0.5) + 1e-6)
  EXPECT_FLOAT_EQ(records[0]["advantage"].get<float>(), -0.70710578f);
  EXPECT_FLOAT_EQ(records[1]["advantage"].get<float>(), 0.70710578f);
  EXPECT_EQ(records[2]["advantage"], Json());
  EXPECT_EQ(records[2]["reward"], Json());
}

TEST_F(RolloutJudgeTest, OneJudgementIsRecordedWhateverDies) {
  // Killed with the answer in hand, before it was durable: asked again, under the same key.
  JudgeServer judge(
      [](const JudgeServer::Question& question) { return Judgement(question.attempt); });
  Start("rollout.judge.after:1");
  daemon_->Submit(JudgedJob("cut", files_.path(), 1, 1, judge.url()));
  daemon_->WaitKilled();
  Start();
  EXPECT_EQ(daemon_->Finish("cut").at(0)["reward"], 2.0);
  // Killed once it was durable: what is in the log stands.
  Start("trajectory.sealed:1");
  daemon_->Submit(JudgedJob("sealed", files_.path(), 1, 1, judge.url()));
  daemon_->WaitKilled();
  Start();
  EXPECT_EQ(daemon_->Finish("sealed").at(0)["reward"], 1.0);
  EXPECT_EQ(judge.asked(), (std::map<std::string, int>{{"cut/000000/0/reward/0", 2},
                                                       {"sealed/000000/0/reward/0", 1}}));
}

TEST_F(RolloutJudgeTest, ASlowJudgeHoldsUpNobodyElse) {
  JudgeServer judge([](const JudgeServer::Question& question) -> std::optional<http::Response> {
    if (question.body["job_id"] == "slow") return std::nullopt;
    return Judgement(1);
  });
  Start();
  daemon_->Submit(JudgedJob("slow", files_.path(), 40, 1, judge.url(), "", "", 64));
  judge.WaitAsked(40);
  daemon_->Submit(JudgedJob("quick", files_.path(), 2, 2, judge.url()));
  for (const Json& record : daemon_->Finish("quick")) EXPECT_EQ(record["reward"], 1.0);
  EXPECT_EQ(daemon_->Get("slow").sealed(), 0u);
  // A cancelled job does not wait for its judge.
  wire::CancelJobRequest request;
  request.set_job_id("slow");
  grpc::ClientContext context;
  wire::Job job;
  ASSERT_TRUE(daemon_->stub()->Cancel(&context, request, &job).ok());
  for (const Json& record : daemon_->Finish("slow")) {
    EXPECT_EQ(record["status"], "aborted");
    EXPECT_EQ(record["reward"], Json());
  }
}

}  // namespace
}  // namespace reprise::rollout
