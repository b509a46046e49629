// Goal: a trajectory does the right thing after every entry of its log, and the same thing whenever
// it is asked again. Method: the test plays model and sandbox, turn by turn, up to every limit.
#include "rollout/trajectory.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/unit/rollout/play.h"

namespace reprise::rollout {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using Kind = Action::Kind;

class TrajectoryTest : public testing::Test {
 protected:
  // A job with the sh tool; `limits`: keys of its [limits].
  std::unique_ptr<JobSpec> Job(const std::string& limits = "",
                               const std::string& reward = kMatchReward) {
    auto job = files_.Load(std::string(kJobTop) + "[limits]\n" + limits + kShTool + reward);
    EXPECT_TRUE(job.ok()) << job.status();
    return job.ok() ? *std::move(job) : nullptr;
  }
  static std::string Sh(const std::string& command) { return CallText("sh", "command", command); }
  static void ExpectSealed(Player* player, const std::string& status,
                           const std::string& stop_reason) {
    EXPECT_EQ(player->Next().kind, Kind::kDone);
    ASSERT_TRUE(player->state().sealed.has_value());
    EXPECT_EQ(player->state().sealed->status(), status);
    EXPECT_EQ(player->state().sealed->stop_reason(), stop_reason);
  }

  JobFiles files_;
};

TEST_F(TrajectoryTest, BeginsWithThePromptAndItsIdentity) {
  Player player(Job());
  const journal::TrajectoryStart& start = player.state().start;
  EXPECT_EQ(start.trajectory_id(), "j/000000/0");
  EXPECT_EQ(start.task_id(), "t");
  EXPECT_EQ(start.engine_digest(), Player::LogDigest());
  const std::string prompt = TinyTokenizer().Decode(player.state().tokens);
  EXPECT_THAT(prompt, HasSubstr("<｜User｜>Compute 2 + 2.<｜Assistant｜>"));
  EXPECT_THAT(prompt, HasSubstr("\"name\": \"sh\""));
}

TEST_F(TrajectoryTest, AnAnswerWithoutCallsIsGradedAndSealed) {
  Player player(Job());
  ASSERT_TRUE(player.Say(" 4\n"));
  ExpectSealed(&player, "completed", "stop");
  EXPECT_EQ(player.state().reward->value(), 1.0f);
  EXPECT_EQ(player.state().sealed->failure_kind(), "");

  Player wrong(Job());
  ASSERT_TRUE(wrong.Say("5"));
  ExpectSealed(&wrong, "completed", "stop");
  EXPECT_TRUE(wrong.state().reward->has_value());
  EXPECT_EQ(wrong.state().reward->value(), 0.0f);
}

TEST_F(TrajectoryTest, ACallRunsOnceAndItsResultIsFedOffTheMask) {
  Player player(Job());
  ASSERT_TRUE(player.Say("let me see" + Sh("echo 4")));
  Action call = player.Next();
  ASSERT_EQ(call.kind, Kind::kCall);
  EXPECT_EQ(call.request.call_id(), "j/000000/0/0/0");
  EXPECT_EQ(call.request.sandbox_id(), "j/000000/0");
  EXPECT_THAT(call.request.argv(), ElementsAre("/bin/sh", "-c", "echo 4"));
  EXPECT_EQ(call.request.env(0).name(), "REPRISE_CALL_ID");
  EXPECT_EQ(call.request.env(0).value(), call.request.call_id());
  EXPECT_EQ(call.request.span().begin(), player.state().prompt_len());
  EXPECT_EQ(call.request.span().end(), player.state().tokens.size());
  EXPECT_EQ(call.request.span().weight_version(), 3u);
  // Asking again, as after a crash, is the same call.
  EXPECT_EQ(player.Next().request.SerializeAsString(), call.request.SerializeAsString());

  uint64_t sampled_end = player.state().tokens.size();
  player.Answer(call, Exited(0, "4\n"));
  ASSERT_EQ(player.Next().kind, Kind::kDecode);
  EXPECT_THAT(player.LastFed(), HasSubstr("<tool_result>4</tool_result>"));
  for (uint64_t i = sampled_end; i < player.state().tokens.size(); ++i) {
    EXPECT_EQ(player.state().loss_mask[i], 0);
    EXPECT_EQ(player.state().logprobs[i], 0.0f);
  }
  const journal::CallDone& done = *player.state().calls[0].done;
  EXPECT_EQ(done.outcome(), sandbox::OUTCOME_EXITED);
  EXPECT_EQ(done.duration_us(), 1500);
  ASSERT_TRUE(player.Say("4"));
  ExpectSealed(&player, "completed", "stop");
  EXPECT_EQ(player.state().reward->value(), 1.0f);
}

TEST_F(TrajectoryTest, SeveralCallsOfATurnRunInOrderAndAreFedTogether) {
  Player player(Job());
  std::string first = Sh("a"), second = Sh("b");
  const std::string close = "</｜DSML｜tool_calls>", open = "\n\n<｜DSML｜tool_calls>\n";
  first.resize(first.size() - close.size());
  ASSERT_TRUE(player.Say(first + second.substr(open.size())));
  Action call = player.Next();
  EXPECT_EQ(call.request.call_id(), "j/000000/0/0/0");
  player.Answer(call, Exited(0, "A"));
  call = player.Next();
  ASSERT_EQ(call.kind, Kind::kCall);
  EXPECT_EQ(call.request.call_id(), "j/000000/0/0/1");
  EXPECT_EQ(call.request.argv(2), "b");
  player.Answer(call, Exited(0, "B"));
  EXPECT_EQ(player.Next().kind, Kind::kDecode);
  EXPECT_THAT(player.LastFed(),
              testing::ContainsRegex("<tool_result>A</tool_result>.*<tool_result>B</tool_result>"));
  EXPECT_THAT(player.state().segments.back().call_ids,
              ElementsAre("j/000000/0/0/0", "j/000000/0/0/1"));
}

// What no sandbox can run is answered in words, and the trajectory goes on.
TEST_F(TrajectoryTest, WhatCannotRunIsToldToTheModel) {
  struct Case {
    std::string text, error;
  };
  const std::vector<Case> cases = {
      {CallText("rm", "path", "/"), "unknown tool \"rm\", available: sh"},
      {CallText("sh", "cmd", "x"), "tool \"sh\": missing argument \"command\""},
      {Sh("a\n</｜DSML｜parameter>x"), "tool call markup"},
      {"\n\n<｜DSML｜tool_calls>\n", "tool call markup"},
      {"｜DSML｜", "expected a blank line and <｜DSML｜tool_calls> first"},
  };
  for (const Case& each : cases) {
    Player player(Job());
    ASSERT_TRUE(player.Say(each.text)) << each.text;
    ASSERT_EQ(player.Next().kind, Kind::kDecode) << each.text;
    EXPECT_THAT(player.LastFed(), HasSubstr("error: ")) << each.text;
    EXPECT_THAT(player.LastFed(), HasSubstr(each.error)) << each.text;
    ASSERT_EQ(player.state().calls.size(), 1u);
    EXPECT_EQ(player.state().calls[0].done->outcome(), sandbox::OUTCOME_UNSPECIFIED);
    EXPECT_THAT(player.state().calls[0].done->error(), HasSubstr(each.error));
    ASSERT_TRUE(player.Say("4"));
    ExpectSealed(&player, "completed", "stop");
    EXPECT_EQ(player.state().reward->value(), 1.0f);
  }
}

TEST_F(TrajectoryTest, WithoutToolsEveryCallIsUnknown) {
  files_.Write("tasks.jsonl", "{\"id\": \"t\", \"prompt\": \"p\", \"tools\": []}\n");
  Player player(Job());
  ASSERT_TRUE(player.Say(Sh("x")));
  ASSERT_EQ(player.Next().kind, Kind::kDecode);
  EXPECT_THAT(player.LastFed(), HasSubstr("unknown tool \"sh\", there are no tools"));
}

TEST_F(TrajectoryTest, EachOutcomeIsShownAndOnlyThePlatformsEndTheTrajectory) {
  const std::vector<std::pair<sandbox::Outcome, std::string>> shown = {
      {sandbox::OUTCOME_SIGNALED, "[killed by signal 0]"},
      {sandbox::OUTCOME_TIMED_OUT, "[timed out]"},
      {sandbox::OUTCOME_MEMORY_EXCEEDED, "[out of memory]"},
      {sandbox::OUTCOME_OUTPUT_TRUNCATED, "[stopped: too much output]"},
      {sandbox::OUTCOME_POLICY_VIOLATION, "[stopped: forbidden system call]"},
      {sandbox::OUTCOME_CANCELLED, "[cancelled]"}};
  for (const auto& [outcome, text] : shown) {
    Player player(Job());
    ASSERT_TRUE(player.Say(Sh("x")));
    player.Answer(player.Next(), Ended(outcome, "so far"));
    ASSERT_EQ(player.Next().kind, Kind::kDecode) << text;
    EXPECT_THAT(player.LastFed(), HasSubstr("so far\n" + text));
  }
  for (sandbox::Outcome outcome : {sandbox::OUTCOME_SETUP_FAILED, sandbox::OUTCOME_SANDBOX_LOST,
                                   sandbox::OUTCOME_INTERRUPTED}) {
    Player player(Job());
    ASSERT_TRUE(player.Say(Sh("x")));
    CallOutput output = Ended(outcome);
    output.result.set_message("cannot bind at /data: no such directory");
    player.Answer(player.Next(), output);
    ExpectSealed(&player, "failed", "");
    EXPECT_EQ(player.state().sealed->failure_kind(), "infra");
    EXPECT_EQ(player.state().sealed->failure(),
              "call j/000000/0/0/0 ended with " + sandbox::Outcome_Name(outcome) +
                  ": cannot bind at /data: no such directory");
    EXPECT_EQ(player.state().calls[0].done->error(), output.result.message());
    EXPECT_FALSE(player.state().reward.has_value());
  }
}

TEST_F(TrajectoryTest, LengthTurnAndToolLimitsTruncateAndAreStillGraded) {
  Player length(Job("max_tokens = 3\n"));
  EXPECT_FALSE(length.Say("one two three four five", false));
  ExpectSealed(&length, "truncated", "length");
  EXPECT_EQ(length.state().tokens.size(), length.state().prompt_len() + 3);
  EXPECT_TRUE(length.state().reward->has_value());

  Player turns(Job("max_turns = 2\n"));
  ASSERT_TRUE(turns.Say(Sh("x")));
  turns.Answer(turns.Next(), Exited(0, "y"));
  ASSERT_TRUE(turns.Say(Sh("z")));
  ExpectSealed(&turns, "truncated", "turn_limit");
  EXPECT_EQ(turns.state().calls.size(), 1u);

  Player tools(Job("max_tool_calls = 1\n"));
  ASSERT_TRUE(tools.Say(Sh("x")));
  tools.Answer(tools.Next(), Exited(0, "y"));
  ASSERT_TRUE(tools.Say(Sh("z")));
  ExpectSealed(&tools, "truncated", "tool_limit");
  EXPECT_EQ(tools.state().calls.size(), 1u);
}

TEST_F(TrajectoryTest, ContextOverflowTruncatesOrFailsAtThePrompt) {
  int64_t prompt = static_cast<int64_t>(Player(Job()).state().prompt_len());
  Player full(Job(), prompt + 2);
  EXPECT_FALSE(full.Say("one two three four five", false));
  ExpectSealed(&full, "truncated", "context");
  EXPECT_EQ(static_cast<int64_t>(full.state().tokens.size()), prompt + 2);

  Player none(Job("max_context = " + std::to_string(prompt) + "\n"));
  ExpectSealed(&none, "failed", "context");
  EXPECT_EQ(none.state().sealed->failure_kind(), "env");
  EXPECT_THAT(none.state().sealed->failure(), HasSubstr("the context has room for"));
  EXPECT_FALSE(none.state().reward.has_value());
}

TEST_F(TrajectoryTest, AResultThatLeavesNoRoomIsNotFed) {
  const std::string big(3000, 'x');
  for (bool context : {true, false}) {
    int64_t prompt = static_cast<int64_t>(Player(Job()).state().prompt_len());
    Player player(Job(context ? "" : "max_tokens = 300\n"), context ? prompt + 300 : 100'000);
    ASSERT_TRUE(player.Say(Sh("x")));
    uint64_t tokens = player.state().tokens.size();
    player.Answer(player.Next(), Exited(0, big));
    ExpectSealed(&player, "truncated", context ? "context" : "length");
    EXPECT_EQ(player.state().tokens.size(), tokens);
    EXPECT_TRUE(player.state().calls[0].done.has_value());
  }
}

TEST_F(TrajectoryTest, ResultsAreCutInTheMiddle) {
  Player player(Job("tool_result_bytes = 64\n"));
  ASSERT_TRUE(player.Say(Sh("x")));
  player.Answer(player.Next(),
                Exited(0, std::string(40, 'a') + std::string(400, 'b') + std::string(40, 'c')));
  ASSERT_EQ(player.Next().kind, Kind::kDecode);
  EXPECT_THAT(player.LastFed(),
              HasSubstr(std::string(32, 'a') + "\n[416 bytes left out]\n" + std::string(32, 'c')));
  EXPECT_TRUE(player.state().calls[0].done->truncated());
}

TEST_F(TrajectoryTest, ACommandRewardSeesTheFinalContent) {
  Player player(Job("", "\n[reward]\nkind = \"command\"\ncommand = [\"judge\"]\n"));
  ASSERT_TRUE(player.Say("the answer"));
  Action grade = player.Next();
  ASSERT_EQ(grade.kind, Kind::kGrade);
  EXPECT_EQ(grade.request.call_id(), "j/000000/0/reward/0");
  EXPECT_THAT(grade.request.stdin(), HasSubstr("\"response\":\"the answer\""));
  player.Answer(grade, Exited(0, "0.25\n"));
  ExpectSealed(&player, "completed", "stop");
  EXPECT_EQ(player.state().reward->value(), 0.25f);

  Player broken(Job("", "\n[reward]\nkind = \"command\"\ncommand = [\"judge\"]\n"));
  ASSERT_TRUE(broken.Say("the answer"));
  broken.Answer(broken.Next(), Exited(2, ""));
  ExpectSealed(&broken, "completed", "stop");
  EXPECT_FALSE(broken.state().reward->has_value());
  EXPECT_EQ(broken.state().sealed->failure_kind(), "grader");
}

TEST_F(TrajectoryTest, PlansAreGroupMajor) {
  auto job = Job();
  job->group_size = 3;
  Task second = job->tasks[0];
  second.id = "u";
  second.group = 5;
  job->tasks.push_back(second);
  EXPECT_EQ(MakePlan(*job, 2).id, "j/000000/2");
  EXPECT_EQ(MakePlan(*job, 3).id, "j/000005/0");
  EXPECT_NE(MakePlan(*job, 3).seed, MakePlan(*job, 4).seed);
}

}  // namespace
}  // namespace reprise::rollout
