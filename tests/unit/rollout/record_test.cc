// Goal: the exported record says what the log says, with every array aligned to the tokens and a
// digest that covers them. Method: a played trajectory with a call, exported and read back field by
// field.
#include "rollout/record.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "absl/strings/escaping.h"
#include "rollout/text.h"
#include "tests/unit/rollout/play.h"

namespace reprise::rollout {
namespace {

using json = nlohmann::json;
using testing::HasSubstr;

class RecordTest : public testing::Test {
 protected:
  std::unique_ptr<JobSpec> Job() {
    files_.Write("tasks.jsonl",
                 "{\"id\": \"first\", \"prompt\": \"no\"}\n"
                 "{\"id\": \"t\", \"prompt\": \"Compute 2 + 2.\"}\n");
    auto job = files_.Load("first = 1\ngroup_size = 2\n" + std::string(kJobTop) +
                           "[sampling]\ntemperature = 0.5\n" + kShTool + kMatchReward);
    EXPECT_TRUE(job.ok()) << job.status();
    return *std::move(job);
  }
  // Turn with a call, its result, turn with the answer, sealed.
  static void PlayOut(Player* player) {
    ASSERT_TRUE(player->Say("let me see" + CallText("sh", "command", "echo 4")));
    player->Answer(player->Next(), Exited(0, "4\n"));
    ASSERT_TRUE(player->Say("4"));
    ASSERT_EQ(player->Next().kind, Action::Kind::kDone);
  }
  static json Export(Player* player, bool without_timing = false) {
    replay::TrajectoryState state = player->state();
    journal::JobRecord record;
    record.set_job_id("j");
    (*record.mutable_engine())["model"] = "m";
    record.set_route_layers(2);
    record.set_routes_per_token(3);
    JobRun run(player->TakeJob(), record);
    run.set_tokenizer(&TinyTokenizer());
    auto text = ExportRecord(state, run, without_timing);
    EXPECT_TRUE(text.ok()) << text.status();
    EXPECT_EQ(text->find('\n'), std::string::npos);
    return text.ok() ? json::parse(*text) : json();
  }

  JobFiles files_;
};

TEST_F(RecordTest, EveryFieldIsThere) {
  Player player(Job());
  PlayOut(&player);
  const replay::TrajectoryState state = player.state();
  const std::string hash = player.plan().task->hash;
  json record = Export(&player);

  EXPECT_EQ(record["schema"], "rollout.v1");
  EXPECT_EQ(record["run_id"], "j");
  EXPECT_EQ(record["group_id"], "j/000001");
  EXPECT_EQ(record["group_ordinal"], 1);
  EXPECT_EQ(record["group_size"], 2);
  EXPECT_EQ(record["sample_idx"], 0);
  EXPECT_EQ(record["rollout_id"], "j/000001/0");
  EXPECT_EQ(record["task"],
            (json{{"key", "t"}, {"hash", hash}, {"dataset", "tasks.jsonl"}, {"row", 1}}));
  EXPECT_EQ(record["temperature"], 0.5);
  EXPECT_EQ(record["top_p"], 1.0);
  EXPECT_EQ(record["seed"], state.start.seed());
  EXPECT_EQ(record["logprobs_mode"], "processed");
  EXPECT_EQ(record["reward"], 1.0);
  EXPECT_EQ(record["reward_components"], json::object());
  EXPECT_EQ(record["status"], "completed");
  EXPECT_EQ(record["stop_reason"], "stop");
  EXPECT_EQ(record["finish_reason"], "stop");
  EXPECT_EQ(record["valid"], true);
  EXPECT_TRUE(record["failure"].is_null());
  EXPECT_EQ(record["engine"]["model"], "m");
  EXPECT_EQ(record["digest"], Hex(replay::TrajectoryDigest(state)));
  EXPECT_EQ(record["resume"], json::array());
  for (const char* key : {"queue_ms", "prefill_ms", "decode_ms", "tool_ms", "grade_ms", "total_ms"})
    EXPECT_TRUE(record["timing"][key].is_number()) << key;
  EXPECT_EQ(record["timing"]["calls"][0]["ms"], 1.5);
  EXPECT_FALSE(record.contains("routed_experts"));

  const json& call = record["tool_calls"][0];
  EXPECT_EQ(call["call_id"], "j/000001/0/0/0");
  EXPECT_EQ(call["tool"], "sh");
  EXPECT_EQ(json::parse(call["arguments"].get<std::string>()), (json{{"command", "echo 4"}}));
  EXPECT_EQ(call["span"], (json{state.prompt_len(), state.segments[1].end}));
  EXPECT_EQ(call["outcome"], "EXITED");
  EXPECT_EQ(call["exit_code"], 0);
  EXPECT_EQ(call["result"], "4");
  EXPECT_TRUE(call["error"].is_null());
  EXPECT_EQ(call["truncated"], false);

  ASSERT_EQ(record["messages"].size(), 4u);
  EXPECT_EQ(record["messages"][1]["content"], "let me see");
  EXPECT_EQ(record["messages"][1]["tool_calls"][0]["id"], "j/000001/0/0/0");
  EXPECT_EQ(record["messages"][2],
            (json{{"role", "tool"}, {"tool_call_id", "j/000001/0/0/0"}, {"content", "4"}}));
  EXPECT_EQ(record["messages"][3]["content"], "4");
  EXPECT_THAT(record["response_text"].get<std::string>(),
              HasSubstr("<tool_result>4</tool_result>"));
}

TEST_F(RecordTest, EveryArrayIsAlignedToTheTokens) {
  Player player(Job());
  PlayOut(&player);
  const replay::TrajectoryState state = player.state();
  json record = Export(&player);
  const auto ids = record["token_ids"].get<std::vector<int32_t>>();
  const auto mask = record["loss_mask"].get<std::vector<int>>();
  const auto logprobs = record["logprobs"].get<std::vector<float>>();
  const auto versions = record["weight_versions"].get<std::vector<int64_t>>();
  EXPECT_EQ(ids, state.tokens);
  ASSERT_EQ(mask.size(), ids.size());
  ASSERT_EQ(logprobs.size(), ids.size());
  ASSERT_EQ(versions.size(), ids.size());
  for (size_t i = 0; i < ids.size(); ++i) {
    EXPECT_EQ(logprobs[i], mask[i] != 0 ? -0.5f : 0.0f) << i;
    EXPECT_EQ(versions[i], mask[i] != 0 ? 3 : -1) << i;
  }
  const size_t prompt = record["prompt_len"];
  auto joined = record["prompt_ids"].get<std::vector<int32_t>>();
  EXPECT_EQ(joined.size(), prompt);
  for (int32_t id : record["response_ids"]) joined.push_back(id);
  EXPECT_EQ(joined, ids);

  // Segments tile the tokens; the mask is 1 on exactly the sampled ones.
  const std::vector<std::string> roles = {"prompt", "sampled", "tool", "sampled"};
  ASSERT_EQ(record["segments"].size(), roles.size());
  size_t at = 0;
  for (size_t i = 0; i < roles.size(); ++i) {
    const json& segment = record["segments"][i];
    EXPECT_EQ(segment["role"], roles[i]);
    EXPECT_EQ(segment["start"], at);
    for (; at < segment["end"].get<size_t>(); ++at) EXPECT_EQ(mask[at], roles[i] == "sampled");
  }
  EXPECT_EQ(at, ids.size());
  EXPECT_EQ(record["segments"][2]["call_ids"][0], "j/000001/0/0/0");
  EXPECT_EQ(record["segments"][3]["turn"], 1);
  EXPECT_EQ(record["version_spans"],
            (json{{3, prompt, state.segments[1].end}, {3, state.segments[2].end, ids.size()}}));
}

TEST_F(RecordTest, RoutesHaveARowForEachTokenButTheLast) {
  for (bool whole : {true, false}) {
    Player player(Job());
    ASSERT_TRUE(player.Next().kind == Action::Kind::kDecode);
    const size_t prompt = player.state().prompt_len();
    journal::TrajectoryEntry entry;
    entry.mutable_sampled()->set_position(prompt);
    entry.mutable_sampled()->add_ids(whole ? kTinyEos : 5);
    entry.mutable_sampled()->add_logprobs(-0.5f);
    entry.mutable_sampled()->set_routed_experts(std::string(prompt * 6, '\x01'));
    player.Write(entry);
    if (!whole) {
      // Cancelled before the tokens of a result were fed to the model.
      journal::TrajectoryEntry fed;
      fed.mutable_fed()->set_position(prompt + 1);
      fed.mutable_fed()->add_ids(6);
      player.Write(fed);
      player.Write(SealEntry("aborted", "", "", "cancelled by request"));
    }
    ASSERT_EQ(player.Next().kind, Action::Kind::kDone);
    const size_t rows = player.state().tokens.size() - 1;
    json routes = Export(&player)["routed_experts"];
    EXPECT_EQ(routes["dtype"], "uint8");
    EXPECT_EQ(routes["shape"], (json{rows, 2, 3}));
    EXPECT_EQ(routes["recorded"], prompt);
    std::string data;
    ASSERT_TRUE(absl::Base64Unescape(routes["data_base64"].get<std::string>(), &data));
    EXPECT_EQ(data, std::string(prompt * 6, '\x01') + std::string((rows - prompt) * 6, '\xff'));
  }
}

TEST_F(RecordTest, FailuresAreTypedAndHaveNoReward) {
  struct Case {
    journal::TrajectoryEntry seal;
    bool retriable;
  };
  for (const Case& each : {Case{SealEntry("failed", "", "infra", "sandbox lost"), true},
                           Case{SealEntry("failed", "context", "env", "prompt too long"), false}}) {
    Player player(Job());
    player.Write(each.seal);
    json record = Export(&player);
    EXPECT_EQ(record["status"], "failed");
    EXPECT_TRUE(record["reward"].is_null());
    EXPECT_EQ(record["valid"], false);
    EXPECT_EQ(record["failure"]["kind"], each.seal.sealed().failure_kind());
    EXPECT_EQ(record["failure"]["reason"], each.seal.sealed().failure());
    EXPECT_EQ(record["failure"]["retriable"], each.retriable);
  }
  Player aborted(Job());
  aborted.Write(SealEntry("aborted", "", "", "cancelled by request"));
  json record = Export(&aborted);
  EXPECT_EQ(record["finish_reason"], "aborted");
  EXPECT_EQ(record["valid"], false);
  EXPECT_TRUE(record["reward"].is_null());
}

TEST_F(RecordTest, WithoutTimingTellsNothingOfTheRun) {
  Player player(Job());
  PlayOut(&player);
  json record = Export(&player, true);
  EXPECT_FALSE(record.contains("timing"));
  EXPECT_FALSE(record.contains("resume"));
}

TEST_F(RecordTest, AJobWhoseFilesChangedSaysSo) {
  journal::JobRecord record;
  record.set_job_id("j");
  JobRun run(record, {}, absl::FailedPreconditionError("the task set changed"));
  auto text = ExportRecord({}, run, false);
  EXPECT_EQ(text.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(Message(text.status()),
              HasSubstr("records of job j cannot be made: the task set changed"));
}

}  // namespace
}  // namespace reprise::rollout
