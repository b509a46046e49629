// Goal: a reward is what the judge said, and a judge that failed gives none, never 0. Method: every
// way in which a command can end.
#include "rollout/reward.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "tests/unit/rollout/play.h"

namespace reprise::rollout {
namespace {

using testing::HasSubstr;

TEST(MatchReward, ComparesWithoutOuterWhiteSpace) {
  RewardSpec spec;
  spec.answer = " 42\n";
  EXPECT_EQ(MatchReward(spec, "\t42 ").value(), 1.0f);
  EXPECT_EQ(MatchReward(spec, "4 2").value(), 0.0f);
  EXPECT_TRUE(MatchReward(spec, "").has_value());
  EXPECT_EQ(MatchReward(spec, "").value(), 0.0f);
}

TEST(CommandReward, ExitCodesAndLastLine) {
  auto value = [](int code, const std::string& out) {
    journal::RewardDone done = CommandReward(Exited(code, out));
    EXPECT_TRUE(done.has_value()) << out;
    EXPECT_EQ(done.failure(), "");
    return done.value();
  };
  EXPECT_EQ(value(0, ""), 1.0f);
  EXPECT_EQ(value(0, "log\n0.5\n"), 0.5f);
  EXPECT_EQ(value(0, "-3e2"), -300.0f);
  EXPECT_EQ(value(0, "0.5\nall good\n"), 1.0f);
  EXPECT_EQ(value(0, "nan"), 1.0f);
  EXPECT_EQ(value(0, "inf"), 1.0f);
  EXPECT_EQ(value(1, "0.9"), 0.0f);
}

TEST(CommandReward, WhatIsNoJudgementGivesNone) {
  for (int code : {2, 126, 127, 255}) {
    journal::RewardDone done = CommandReward(Exited(code, "1"));
    EXPECT_FALSE(done.has_value());
    EXPECT_THAT(done.failure(), HasSubstr("exited with code " + std::to_string(code)));
  }
  for (int outcome = sandbox::OUTCOME_SIGNALED; outcome <= sandbox::OUTCOME_CANCELLED; ++outcome) {
    CallOutput output = Ended(static_cast<sandbox::Outcome>(outcome), "1");
    output.result.set_message("why \xff");
    journal::RewardDone done = CommandReward(output);
    EXPECT_FALSE(done.has_value()) << outcome;
    EXPECT_THAT(done.failure(), HasSubstr(sandbox::Outcome_Name(output.result.outcome())));
    EXPECT_THAT(done.failure(), HasSubstr("why \xEF\xBF\xBD"));
  }
}

TEST(ReadJudgement, NumbersAndObjectsWithOne) {
  EXPECT_EQ(ReadJudgement(200, " 0 ").value(), 0.0f);
  EXPECT_TRUE(ReadJudgement(200, "0").has_value());
  EXPECT_EQ(ReadJudgement(200, R"({"reward": -2})").value(), -2.0f);
  journal::RewardDone done =
      ReadJudgement(200, R"({"reward": 1, "components": {"a": 0.5}, "metadata": [1, "x"]})");
  EXPECT_EQ(done.components().at("a"), 0.5f);
  EXPECT_EQ(done.metadata_json(), R"([1,"x"])");
}

TEST(ReadJudgement, EverythingElseGivesNoValue) {
  for (const char* body :
       {"", "null", "true", "\"1\"", "[1]", "NaN", "1e999", "1e39", "{", R"({"reward": null})",
        R"({"reward": "1"})", R"({"reward": 1, "components": 3})",
        R"({"reward": 1, "components": {"a": "b"}})", R"({"rewards": 1})"}) {
    journal::RewardDone done = ReadJudgement(200, body);
    EXPECT_FALSE(done.has_value()) << body;
    EXPECT_NE(done.failure(), "") << body;
  }
  for (int status : {201, 204, 302, 400, 500}) {
    EXPECT_FALSE(ReadJudgement(status, "1").has_value()) << status;
  }
  const std::string much = R"({"reward": 1, "metadata": ")" + std::string(70'000, 'x') + "\"}";
  EXPECT_FALSE(ReadJudgement(200, much).has_value());
  EXPECT_LT(NoReward(std::string(10'000, 'x')).failure().size(), 1000u);
}

TEST(RewardRequest, GivesTaskResponseAndMetadata) {
  JobFiles files;
  files.Write(
      "tasks.jsonl",
      R"({"id": "t", "prompt": "p", "metadata": {"answer": "4"}, "reward": {"kind": "command", "command": ["judge", "-x"], "env": {"E": "1"}, "limits": {"timeout_ms": 9}}})"
      "\n");
  auto job = files.Load(kJobTop);
  ASSERT_TRUE(job.ok()) << job.status();
  std::string response = std::string("a\0b", 3) + "\xff" + std::string(kMaxResponseEnvBytes, 'z');
  auto request = RewardRequest((*job)->tasks[0], "j/000000/0", response);
  EXPECT_EQ(request.sandbox_id(), "j/000000/0");
  EXPECT_EQ(request.argv_size(), 2);
  EXPECT_EQ(request.limits().timeout_ms(), 9u);
  auto input = nlohmann::json::parse(request.stdin());
  EXPECT_EQ(input["task"]["id"], "t");
  EXPECT_EQ(input["metadata"]["answer"], "4");
  const std::string text = input["response"];
  EXPECT_EQ(text.substr(0, 6), std::string("a\0b", 3) + "\xEF\xBF\xBD");
  ASSERT_EQ(request.env_size(), 3);
  EXPECT_EQ(request.env(0).name(), "REPRISE_RESPONSE");
  EXPECT_EQ(request.env(0).value(), std::string(kMaxResponseEnvBytes, 'z'));
  EXPECT_EQ(request.env(1).value(), "j/000000/0/reward/0");
  EXPECT_EQ(request.env(2).name(), "E");

  auto small = RewardRequest((*job)->tasks[0], "j/000000/0", std::string("a\0b", 3));
  EXPECT_EQ(small.env(0).value(), "a b");
}

}  // namespace
}  // namespace reprise::rollout
