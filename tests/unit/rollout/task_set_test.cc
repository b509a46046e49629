// Goal: a task line is read strictly, and whatever is wrong with it is one line that names file,
// line, key and what is allowed. Method: task sets that are wrong at one place.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "rollout/job.h"
#include "rollout/text.h"
#include "tests/unit/rollout/job_files.h"

namespace reprise::rollout {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::StartsWith;

class TaskSetTest : public testing::Test {
 protected:
  absl::StatusOr<std::unique_ptr<JobSpec>> Load(const std::string& tasks,
                                                const std::string& toml = kDefaultJob()) {
    files_.Write("tasks.jsonl", tasks);
    return files_.Load(toml);
  }
  static std::string kDefaultJob() { return std::string(kJobTop) + kShTool + kMatchReward; }
  // The error of `line` as the second line of a task set.
  std::string Error(const std::string& line, const std::string& toml = kDefaultJob()) {
    auto job = Load(kOneTask + line, toml);
    EXPECT_FALSE(job.ok()) << line;
    if (job.ok()) return "";
    EXPECT_EQ(Message(job.status()).find('\n'), std::string::npos) << job.status();
    EXPECT_THAT(Message(job.status()), StartsWith(files_.path() + "/tasks.jsonl:2: "));
    return Message(job.status());
  }

  JobFiles files_;
};

TEST_F(TaskSetTest, AWholeTaskArrives) {
  const std::string line =
      R"({"id": "a b", "messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}], "tools": ["sh"], "sandbox": {"tier": "vm", "env": {"X": "2"}, "limits": {"pids": 9}}, "reward": {"kind": "command", "command": ["c"]}, "metadata": {"k": [1]}})";
  auto job = Load(line + "\n", std::string(kJobTop) + "[sandbox]\nenv = { A = \"1\" }\n" + kShTool);
  ASSERT_TRUE(job.ok()) << job.status();
  const Task& task = (*job)->tasks[0];
  EXPECT_EQ(task.id, "a b");
  EXPECT_EQ(task.hash, Hex(Sha256(line)));
  EXPECT_EQ(task.metadata_json, R"({"k":[1]})");
  EXPECT_EQ(task.sandbox.tier(), sandbox::TIER_VM);
  ASSERT_EQ(task.sandbox.env_size(), 2);  // the job's, then the task's
  EXPECT_EQ(task.sandbox.env(1).name(), "X");
  EXPECT_EQ(task.sandbox.limits().pids(), 9u);
  EXPECT_EQ(task.reward.kind, RewardSpec::Kind::kCommand);
  ASSERT_EQ(task.tools.size(), 1u);
  EXPECT_EQ(task.tools[0]->name(), "sh");
}

TEST_F(TaskSetTest, FirstAndLimitPickLinesAndKeepTheirPlaces) {
  std::string tasks;
  for (int i = 0; i < 5; ++i) {
    tasks += "\n{\"id\": \"t" + std::to_string(i) + "\", \"prompt\": \"p\"}\n  \n";
  }
  auto job = Load(tasks, "first = 1\nlimit = 2\n" + kDefaultJob());
  ASSERT_TRUE(job.ok()) << job.status();
  ASSERT_EQ((*job)->tasks.size(), 2u);
  EXPECT_EQ((*job)->tasks[0].id, "t1");
  EXPECT_EQ((*job)->tasks[0].group, 1u);
  EXPECT_EQ((*job)->tasks[1].group, 2u);
  auto none = Load(tasks, "first = 5\n" + kDefaultJob());
  EXPECT_THAT(Message(none.status()),
              HasSubstr("tasks.jsonl: has 5 tasks, and first = 5 leaves none of them"));
}

TEST_F(TaskSetTest, ATaskTakesTheToolsThatItNames) {
  auto job = Load(R"({"id": "t", "prompt": "p", "tools": []})");
  ASSERT_TRUE(job.ok()) << job.status();
  EXPECT_TRUE((*job)->tasks[0].tools.empty());
  EXPECT_EQ((*job)->tasks[0].tools_json, "");
  EXPECT_EQ((*Load(kOneTask))->tasks[0].tools.size(), 1u);
}

TEST_F(TaskSetTest, EachWrongLineIsNamed) {
  struct Case {
    const char* line;
    const char* expected;
  };
  const std::vector<Case> cases = {
      {"{\"id\": \"x\", \"prompt\": ", "not valid JSON"},
      {"[1, 2]", "is [1,2], allowed: a table"},
      {"{\"id\": \"x\", \"prompt\": \"\xFF\"}", "not valid JSON"},
      {R"({"prompt": "p"})", "id is missing"},
      {R"({"id": "", "prompt": "p"})", "id is empty or too long, allowed: 1..1024 bytes"},
      {R"({"id": 5, "prompt": "p"})", "id is 5, allowed: a string"},
      {R"({"id": "t", "prompt": "p"})", "id \"t\" was used by an earlier task"},
      {R"({"id": "x"})", "messages and prompt: exactly one of the two is needed"},
      {R"({"id": "x", "prompt": "p", "messages": []})", "exactly one of the two"},
      {R"({"id": "x", "messages": []})", "messages is not an array of messages, or is empty"},
      {R"({"id": "x", "messages": "p"})", "messages is not an array"},
      {R"({"id": "x", "messages": [{"role": "king", "content": "c"}]})", "messages do not encode"},
      {R"({"id": "x", "messages": [{"content": "c"}]})", "messages do not encode"},
      {R"({"id": "x", "messages": [5]})", "messages do not encode"},
      {R"({"id": "x", "prompt": 5})", "prompt is 5, allowed: a string"},
      {R"({"id": "x", "prompt": "p", "tools": ["rm"]})",
       "tools names \"rm\", which is no tool of the job file"},
      {R"({"id": "x", "prompt": "p", "tools": "sh"})", "tools is \"sh\", allowed: an array"},
      {R"({"id": "x", "prompt": "p", "metadata": 5})", "metadata is not a table"},
      {R"({"id": "x", "prompt": "p", "sandbox": {"tier": "jail"}})", "sandbox.tier is \"jail\""},
      {R"({"id": "x", "prompt": "p", "reward": {"kind": "match"}})", "reward.answer is missing"},
      {R"({"id": "x", "prompt": "p", "rewards": {}})", "unknown key \"rewards\", allowed: id"},
  };
  for (const Case& each : cases) EXPECT_THAT(Error(each.line), HasSubstr(each.expected));
  EXPECT_THAT(Error(std::string(100, '[')), HasSubstr("nested deeper than 64 levels"));
}

TEST_F(TaskSetTest, ARewardMustComeFromSomewhere) {
  auto job = Load(kOneTask, kJobTop);
  EXPECT_THAT(Message(job.status()),
              AllOf(HasSubstr("tasks.jsonl:1: reward is missing here and in the job file"),
                    HasSubstr("allowed: kind \"match\", \"command\" or \"http\"")));
}

TEST_F(TaskSetTest, AnEmptyTaskSetIsAnError) {
  EXPECT_THAT(Message(Load("\n \n").status()), HasSubstr("has 0 tasks"));
}

TEST_F(TaskSetTest, PromptIsShortForOneUserMessage) {
  auto job = Load(kOneTask);
  ASSERT_TRUE(job.ok());
  EXPECT_EQ((*job)->tasks[0].messages_json, R"([{"role":"user","content":"Compute 2 + 2."}])");
}

}  // namespace
}  // namespace reprise::rollout
