// Goal: a job file is read strictly, and whatever is wrong with it is one line that names file, key
// (or line), what is there and what is allowed. Method: a small valid job, changed at one place.
#include "rollout/job.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "rollout/identity.h"
#include "rollout/text.h"
#include "tests/unit/rollout/job_files.h"

namespace reprise::rollout {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::StartsWith;

const std::string kTop = kJobTop;

class JobTest : public testing::Test {
 protected:
  // The one line of the error that a job file gives.
  std::string Error(const std::string& toml) {
    auto job = files_.Load(toml);
    EXPECT_FALSE(job.ok()) << toml;
    if (job.ok()) return "";
    EXPECT_EQ(Message(job.status()).find('\n'), std::string::npos) << job.status();
    return Message(job.status());
  }
  // The same for the valid job with `rest` behind its top table.
  std::string ErrorOf(const std::string& rest) { return Error(kTop + rest + kMatchReward); }

  JobFiles files_;
};

TEST_F(JobTest, DefaultsAreThoseOfTheDocumentation) {
  auto job = files_.Load("id = \"j\"\nmodel = \"model\"\ntasks = \"tasks.jsonl\"\n" +
                         std::string(kMatchReward));
  ASSERT_TRUE(job.ok()) << job.status();
  const JobSpec& spec = **job;
  EXPECT_EQ(spec.model_dir, files_.path() + "/model");
  EXPECT_EQ(spec.first, 0);
  EXPECT_EQ(spec.group_size, 1u);
  EXPECT_EQ(spec.seed, 0u);
  EXPECT_EQ(spec.mode, engine::ThinkingMode::kThinking);
  EXPECT_EQ(spec.effort, engine::Effort::kNone);
  EXPECT_EQ(spec.temperature, 1.0f);
  EXPECT_EQ(spec.top_p, 1.0f);
  EXPECT_EQ(spec.max_tokens, 4096);
  EXPECT_EQ(spec.max_turns, 32);
  EXPECT_EQ(spec.max_tool_calls, 64);
  EXPECT_EQ(spec.max_context, 0);
  EXPECT_EQ(spec.tool_result_bytes, 16384);
  EXPECT_EQ(spec.max_in_flight, 32);
  EXPECT_FALSE(spec.routed_experts);
  ASSERT_EQ(spec.tasks.size(), 1u);
  EXPECT_EQ(spec.tasks[0].sandbox.tier(), sandbox::TIER_FUNCTION);
  EXPECT_EQ(spec.tasks[0].tools_json, "");
}

TEST_F(JobTest, EveryFieldArrives) {
  files_.Write("tool.json", R"({"name": "read"})");
  auto job = files_.Load(R"(id = "all"
model = "model"
tasks = "tasks.jsonl"
first = 0
limit = 1
group_size = 3
seed = 9223372036854775807
thinking = "thinking"
effort = "max"
on_invalid = "replace"
replacements = 4
[sampling]
temperature = 0
top_p = 0.9
top_k = 7
min_p = 0.25
[limits]
max_tokens = 10
max_turns = 2
max_tool_calls = 0
max_context = 99
tool_result_bytes = 64
max_in_flight = 5
[output]
routed_experts = true
advantage = true
kept_ids = 64
[sandbox]
tier = "container"
image = "debian"
working_dir = "/home"
runtime = "runsc"
user = "u"
env = { A = "1" }
binds = [{ host_path = "data", sandbox_path = "/data", writable = true }]
limits = { timeout_ms = 7, pids = 3 }
[[tools]]
definition = "tool.json"
command = ["cat"]
stdin = "x"
limits = { output_bytes_max = 8 }
[reward]
kind = "command"
command = ["judge"]
env = { B = "2" }
limits = { memory_bytes = 4 }
)");
  ASSERT_TRUE(job.ok()) << job.status();
  const JobSpec& spec = **job;
  EXPECT_EQ(spec.trajectories(), 3u);
  EXPECT_EQ(spec.seed, 9223372036854775807u);
  EXPECT_EQ(spec.effort, engine::Effort::kMax);
  EXPECT_EQ(spec.temperature, 0.0f);
  EXPECT_EQ(spec.top_p, 0.9f);
  EXPECT_EQ(spec.max_context, 99);
  EXPECT_TRUE(spec.routed_experts);
  EXPECT_EQ(spec.on_invalid, OnInvalid::kReplace);
  EXPECT_EQ(spec.replacements, 4);
  EXPECT_EQ(spec.top_k, 7);
  EXPECT_EQ(spec.min_p, 0.25f);
  EXPECT_TRUE(spec.advantage);
  EXPECT_EQ(spec.kept_ids, 64);
  ASSERT_EQ(spec.tools.size(), 1u);
  EXPECT_EQ(spec.tools[0].limits().output_bytes_max(), 8u);
  const Task& task = spec.tasks[0];
  EXPECT_EQ(task.tools_json, R"([{"name": "read"}])");
  EXPECT_EQ(task.sandbox.tier(), sandbox::TIER_CONTAINER);
  EXPECT_EQ(task.sandbox.user(), "u");
  EXPECT_EQ(task.sandbox.env(0).value(), "1");
  EXPECT_EQ(task.sandbox.binds(0).host_path(), files_.path() + "/data");
  EXPECT_TRUE(task.sandbox.binds(0).writable());
  EXPECT_EQ(task.sandbox.limits().pids(), 3u);
  EXPECT_EQ(task.reward.argv, std::vector<std::string>{"judge"});
  EXPECT_EQ(task.reward.limits.memory_bytes(), 4u);
}

TEST_F(JobTest, HttpJudgesAreCheckedBeforeTheyAreAsked) {
  auto error = [this](const std::string& rest) {
    return Error(kTop + std::string("[reward]\nkind = \"http\"\n") + rest);
  };
  EXPECT_THAT(error(""), HasSubstr("reward.url is missing"));
  EXPECT_THAT(error("url = \"judge\"\n"),
              HasSubstr("reward.url is \"judge\" has another scheme, allowed: http://"));
  EXPECT_THAT(error("url = \"http://j\"\nattempts = 0\n"),
              HasSubstr("reward.attempts is 0, allowed: a whole number 1..100"));
  EXPECT_THAT(error("url = \"http://j\"\ntimeout_ms = 0\n"), HasSubstr("reward.timeout_ms is 0"));
  EXPECT_THAT(error("url = \"http://j\"\ntoken_file = \"none\"\n"),
              HasSubstr("reward.token_file cannot be used: "));
}

TEST_F(JobTest, TomlThatDoesNotParseNamesLineAndColumn) {
  EXPECT_THAT(Error("id = \"j\"\nmodel = \n"), StartsWith("job.toml:2:"));
  EXPECT_THAT(Error("id = \"j\"\nid = \"k\"\n"), StartsWith("job.toml:2:"));
  EXPECT_THAT(Error("id = \"\xFF\"\n"), StartsWith("job.toml:1:"));
  EXPECT_THAT(Error("id = 1979-05-27\n"), HasSubstr("dates and times are not used"));
  EXPECT_THAT(Error(""), HasSubstr("id is missing, allowed: a string"));
}

TEST_F(JobTest, EachWrongValueNamesItsKeyAndWhatIsAllowed) {
  struct Case {
    const char* rest;
    const char* expected;
  };
  const std::vector<Case> cases = {
      {"group_size = 0\n", "job.toml: group_size is 0, allowed: a whole number 1..1024"},
      {"group_size = 1025\n", "group_size is 1025, allowed: a whole number 1..1024"},
      {"group_size = \"4\"\n", "group_size is \"4\", allowed: a whole number 1..1024"},
      {"group_size = 1.5\n", "group_size is 1.5, allowed"},
      {"first = -1\n", "first is -1, allowed: a whole number 0..1000000"},
      {"limit = -1\n", "limit is -1, allowed"},
      {"effort = \"huge\"\n", "effort is \"huge\", allowed: \"none\", \"high\", \"max\""},
      {"groupsize = 4\n", "unknown key \"groupsize\", allowed: id, model, tasks"},
      {"sampling = 5\n", "sampling is 5, allowed: a table"},
      {"[sampling]\ntemperature = -0.1\n", "sampling.temperature is -0.1, allowed: a number >= 0"},
      {"[sampling]\ntemperature = nan\n", "sampling.temperature is nan, allowed"},
      {"[sampling]\ntemperature = 101\n", "and <= 100"},
      {"[sampling]\ntop_p = 0\n", "sampling.top_p is 0, allowed: a number > 0 and <= 1"},
      {"[sampling]\ntop_n = 4\n", "unknown key \"sampling.top_n\", allowed: temperature, top_p"},
      {"[sampling]\ntop_k = -1\n", "sampling.top_k is -1, allowed: a whole number 0.."},
      {"[output]\nkept_ids = 4097\n", "output.kept_ids is 4097, allowed: a whole number 0..4096"},
      {"on_invalid = \"zero\"\n", "allowed: \"mask\", \"drop_group\", \"replace\""},
      {"replacements = 2\n", "replacements stands without on_invalid = \"replace\""},
      {"[limits]\nmax_tokens = 0\n", "limits.max_tokens is 0, allowed: a whole number 1..16000000"},
      {"[limits]\nmax_turns = 0\n", "limits.max_turns is 0, allowed: a whole number 1..100000"},
      {"[limits]\nmax_tool_calls = -1\n", "limits.max_tool_calls is -1"},
      {"[limits]\ntool_result_bytes = 1\n", "tool_result_bytes is 1, allowed: a whole number 64.."},
      {"[limits]\nmax_in_flight = 1025\n", "max_in_flight is 1025"},
      {"[output]\nrouted_experts = 1\n", "output.routed_experts is 1, allowed: true or false"},
      {"[sandbox]\ntier = \"jail\"\n",
       "sandbox.tier is \"jail\", allowed: \"function\", \"container\", \"microvm\", \"vm\""},
      {"[sandbox]\nworking_dir = \"tmp\"\n", "sandbox.working_dir is not absolute"},
      {"[sandbox]\nenv = { A = 1 }\n", "sandbox.env is {\"A\":1}, allowed: a table of strings"},
      {"[sandbox]\nenv = { \"A=B\" = \"1\" }\n", "has the variable \"A=B\""},
      {"[sandbox]\nlimits = { time = 1 }\n",
       "unknown key \"sandbox.limits.time\", allowed: timeout"},
      {"[sandbox]\nlimits = { timeout_ms = -1 }\n", "sandbox.limits.timeout_ms is -1"},
      {"[sandbox]\nbinds = [{ sandbox_path = \"/x\" }]\n",
       "sandbox.binds[0].host_path is missing, allowed: a string"},
      {"[sandbox]\nbinds = [{ host_path = \"x\", sandbox_path = \"x\" }]\n",
       "sandbox.binds[0].sandbox_path is not absolute"},
      {"[sandbox]\nbinds = 5\n", "sandbox.binds is 5, allowed: an array of tables"},
      {"[tools]\nname = \"x\"\n", "tools is {\"name\":\"x\"}, allowed: an array of tables"},
      {"[[tools]]\ncommand = [\"p\"]\n", "tools[0].name is missing"},
      {"[[tools]]\nname = \"x\"\n", "tools[0].command is missing"},
      {"[[tools]]\nname = \"x\"\ncommand = []\n",
       "tools[0].command is [], allowed: an array of at "},
      {"[[tools]]\nname = \"x\"\ncommand = [1]\n", "tools[0].command is [1], allowed"},
      {"[[tools]]\nname = \"x\"\nparameters = \"{\"\ncommand = [\"p\"]\n",
       "tools[0].parameters is not valid JSON"},
      {"[[tools]]\nname = \"x\"\ncommand = [\"{y}\"]\n", "uses {y}, which is no parameter"},
      {"[[tools]]\ndefinition = \"none.json\"\ncommand = [\"p\"]\n", "tools.definition:"},
      {"[[tools]]\ndefinition = \"tasks.jsonl\"\nname = \"x\"\ncommand = [\"p\"]\n",
       "tools[0].name stands beside definition"},
      {"[[tools]]\nname = \"x\"\ncommand = [\"p\"]\n[[tools]]\nname = \"x\"\ncommand = [\"p\"]\n",
       "tool \"x\" is there twice"},
  };
  for (const Case& each : cases) {
    EXPECT_THAT(ErrorOf(each.rest), AllOf(StartsWith("job.toml: "), HasSubstr(each.expected)))
        << each.rest;
  }
}

TEST_F(JobTest, RewardsAreCheckedToo) {
  EXPECT_THAT(Error(kTop + "[reward]\n"), HasSubstr("reward.kind is missing"));
  EXPECT_THAT(Error(kTop + "[reward]\nkind = \"judge\"\n"),
              HasSubstr("reward.kind is \"judge\", allowed: \"match\", \"command\""));
  EXPECT_THAT(Error(kTop + "[reward]\nkind = \"match\"\n"), HasSubstr("reward.answer is missing"));
  EXPECT_THAT(Error(kTop + "[reward]\nkind = \"command\"\n"),
              HasSubstr("reward.command is missing"));
  EXPECT_THAT(Error(kTop + "[reward]\nkind = \"match\"\nanswer = \"4\"\ncommand = [\"x\"]\n"),
              HasSubstr("unknown key \"reward.command\""));
}

TEST_F(JobTest, IdsStayWithinWhatNamesCanHold) {
  auto with_id = [](const std::string& id) {
    return "id = \"" + id + "\"\nmodel = \"model\"\ntasks = \"tasks.jsonl\"\n" + kMatchReward;
  };
  for (const std::string& id : {std::string(), std::string("a/b"), std::string("a b"),
                                std::string(".."), std::string(kMaxJobIdBytes + 1, 'a')}) {
    EXPECT_THAT(Error(with_id(id)), HasSubstr("id is \"" + id + "\", allowed: 1..128 letters"));
  }
  EXPECT_TRUE(files_.Load(with_id(std::string(kMaxJobIdBytes, 'a'))).ok());
  auto named = files_.Load(with_id("file"), "request");
  ASSERT_TRUE(named.ok()) << named.status();
  EXPECT_EQ((*named)->id, "request");
}

TEST_F(JobTest, MissingModelAndTaskSetAreNamed) {
  EXPECT_THAT(
      Error("id = \"j\"\nmodel = \"gone\"\ntasks = \"tasks.jsonl\"\n"),
      AllOf(StartsWith("job.toml: model is \""), HasSubstr("/gone\", which is no directory")));
  EXPECT_THAT(Error("id = \"j\"\nmodel = \"model\"\ntasks = \"gone.jsonl\"\n"),
              AllOf(StartsWith("job.toml: tasks: "), HasSubstr("gone.jsonl")));
}

TEST_F(JobTest, TheDigestCoversJobTasksAndToolDefinitions) {
  const std::string toml = kTop + R"([[tools]]
definition = "tool.json"
command = ["p"]
)" + kMatchReward;
  files_.Write("tool.json", R"({"name": "f"})");
  const std::string digest = (*files_.Load(toml))->digest;
  EXPECT_EQ((*files_.Load(toml))->digest, digest);
  EXPECT_NE((*files_.Load(toml + "# changed\n"))->digest, digest);
  files_.Write("tool.json", R"({"name": "g"})");
  EXPECT_NE((*files_.Load(toml))->digest, digest);
  files_.Write("tool.json", R"({"name": "f"})");
  files_.Write("tasks.jsonl", std::string(kOneTask) + "\n");
  EXPECT_NE((*files_.Load(toml))->digest, digest);
}

}  // namespace
}  // namespace reprise::rollout
