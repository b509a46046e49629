// Goal: tools that misbehave end with their outcome, the model reads what happened, the trajectory
// goes on; only the platform's own failures end one, and then there is no reward. Method: the tiny
// model calls `sh`, and whatever it asks for, the command does the bad thing.
#include <unistd.h>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/integration/rollout_daemons.h"

namespace reprise::rollout {
namespace {

using testing::AnyOf;
using testing::HasSubstr;

constexpr char kLimits[] =
    "[limits]\nmax_tokens = 400\nmax_turns = 2\nmax_in_flight = 4\ntool_result_bytes = 128\n";

// One pair of daemons for all tests here.
class RolloutToolsTest : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    if (::geteuid() != 0) return;
    state_ = std::make_unique<base::ScratchDir>("rollout");
    daemons_ = std::make_unique<Daemons>(state_->path());
  }
  static void TearDownTestSuite() {
    daemons_.reset();
    state_.reset();
  }
  void SetUp() override {
    if (::geteuid() != 0) GTEST_SKIP() << "the function tier needs root";
  }
  // Runs four tasks whose tool is `command`; the calls that reached a sandbox.
  std::vector<Json> RunTool(const std::string& id, const std::string& command,
                            const std::string& limits, Daemons::Ended* ended) {
    *ended = daemons_->Run(JobTop(id, 1, 0, 4, 1) + kLimits + ShTool(command, limits));
    std::vector<Json> calls;
    for (const Json& record : ended->records) {
      for (const Json& call : record["tool_calls"]) {
        if (call["outcome"] != "NOT_RUN") calls.push_back(call);
      }
    }
    EXPECT_FALSE(calls.empty()) << "the model made no call";
    return calls;
  }

  static std::unique_ptr<base::ScratchDir> state_;
  static std::unique_ptr<Daemons> daemons_;
};
std::unique_ptr<base::ScratchDir> RolloutToolsTest::state_;
std::unique_ptr<Daemons> RolloutToolsTest::daemons_;

TEST_F(RolloutToolsTest, MisbehaviourIsAnOutcomeThatTheModelReads) {
  struct Case {
    const char* id;
    const char* script;
    const char* limits;
    const char* outcome;
    const char* shown;
  };
  const std::vector<Case> cases = {
      {"flood", "yes", "output_bytes_max = 1000000", "OUTPUT_TRUNCATED",
       "[stopped: too much output]"},
      {"forks", "while :; do sleep 100 & done", "pids = 16", "EXITED", "[exit code 2]"},
      {"memory", "x=a; while :; do x=$x$x; done", "memory_bytes = 50331648", "MEMORY_EXCEEDED",
       "[out of memory]"},
      {"sigterm", "trap '' TERM INT HUP; echo on; while :; do sleep 1; done", "timeout_ms = 300",
       "TIMED_OUT", "on\n[timed out]"},
      {"crash", "kill -SEGV $$", "timeout_ms = 5000", "SIGNALED", "[killed by signal 11]"},
      {"binary", "printf '\\\\377\\\\376ok'", "timeout_ms = 5000", "EXITED",
       "\xEF\xBF\xBD\xEF\xBF\xBDok"},
  };
  for (const Case& each : cases) {
    SCOPED_TRACE(each.id);
    const std::string command = "[\"/bin/sh\", \"-c\", \"" + std::string(each.script) + "\"]";
    Daemons::Ended ended;
    for (const Json& call : RunTool(each.id, command, each.limits, &ended)) {
      EXPECT_EQ(call["outcome"], each.outcome);
      EXPECT_THAT(call["result"].get<std::string>(), HasSubstr(each.shown));
      EXPECT_LE(call["result"].get<std::string>().size(), 300u);
    }
    size_t went_on = 0;
    for (const Json& record : ended.records) {
      EXPECT_THAT(record["status"], AnyOf("completed", "truncated"));
      EXPECT_TRUE(record["reward"].is_number());
      EXPECT_EQ(record["valid"], true);
      for (size_t i = 1; i < record["segments"].size(); ++i) {
        went_on += record["segments"][i - 1]["role"] == "tool" &&
                   record["segments"][i]["role"] == "sampled";
      }
    }
    EXPECT_GT(went_on, 0u) << "no trajectory sampled after a result";
  }
}

TEST_F(RolloutToolsTest, ACommandThatCannotStartIsThePlatformsFailure) {
  Daemons::Ended ended;
  RunTool("setup", "[\"/no/such/program\"]", "timeout_ms = 5000", &ended);
  size_t failed = 0;
  for (const Json& record : ended.records) {
    if (record["status"] != "failed") continue;
    ++failed;
    EXPECT_EQ(record["failure"]["kind"], "infra");
    EXPECT_EQ(record["failure"]["retriable"], true);
    const std::string reason = record["failure"]["reason"];
    EXPECT_THAT(reason, HasSubstr("OUTCOME_SETUP_FAILED: "));
    EXPECT_THAT(reason, HasSubstr("/no/such/program"));
    // The words of the sandbox daemon, in the record of the call and in what `show` prints.
    const std::string error = record["tool_calls"].back()["error"];
    EXPECT_THAT(error, HasSubstr("/no/such/program"));
    EXPECT_THAT(reason, HasSubstr(error));
    EXPECT_TRUE(record["reward"].is_null());
    EXPECT_EQ(record["valid"], false);
  }
  EXPECT_GT(failed, 0u);
  EXPECT_EQ(ended.job.failed(), failed);
  EXPECT_EQ(ended.job.state(), "completed");
}

TEST_F(RolloutToolsTest, ASandboxThatIsRefusedFailsTheTrajectoryWithoutAReward) {
  const Daemons::Ended ended =
      daemons_->Run(JobTop("refused", 1, 0, 2, 2) + kLimits +
                    "[sandbox]\nbinds = [{ host_path = \"/etc\", sandbox_path = \"/data\" }]\n" +
                    ShTool(kRunShell));
  ASSERT_EQ(ended.records.size(), 4u);
  for (const Json& record : ended.records) {
    EXPECT_EQ(record["status"], "failed");
    EXPECT_EQ(record["failure"]["kind"], "infra");
    EXPECT_THAT(record["failure"]["reason"].get<std::string>(), HasSubstr("bind"));
    EXPECT_TRUE(record["reward"].is_null());
    EXPECT_EQ(record["valid"], false);
  }
  EXPECT_EQ(ended.job.rewarded(), 0u);
  EXPECT_EQ(ended.job.failed(), 4u);
}

TEST_F(RolloutToolsTest, AGraderThatBreaksGivesNoReward) {
  base::ScratchDir files("tasks");
  const std::string tasks = files.path() + "/tasks.jsonl";
  std::string lines;
  for (const char* argv :
       {R"(["sh", "-c", "exit 3"])", R"(["/no/such/judge"])", R"(["sh", "-c", "kill -9 $$"])",
        R"(["sh", "-c", "exit 1"])", R"(["sh", "-c", "echo log; echo 0.25"])",
        R"(["sh", "-c", "cat | grep -q '\"response\"'"])"}) {
    lines += "{\"id\": \"g" + std::to_string(lines.size()) +
             "\", \"prompt\": \"Compute 2 + 2.\", \"tools\": [], \"reward\": {\"kind\": "
             "\"command\", \"command\": " +
             argv + "}}\n";
  }
  ASSERT_TRUE(base::WriteFileAtomic(tasks, lines).ok());
  const Daemons::Ended ended =
      daemons_->Run("id = \"graders\"\nmodel = \"" + std::string(kTinyModel) + "\"\ntasks = \"" +
                    tasks + "\"\nthinking = \"chat\"\n[limits]\nmax_tokens = 16\n");
  ASSERT_EQ(ended.records.size(), 6u);
  const std::vector<std::string> reasons = {"exited with code 3", "OUTCOME_SETUP_FAILED",
                                            "OUTCOME_SIGNALED"};
  for (size_t i = 0; i < reasons.size(); ++i) {
    const Json& record = ended.records[i];
    EXPECT_TRUE(record["reward"].is_null());
    EXPECT_EQ(record["valid"], false);
    EXPECT_EQ(record["failure"]["kind"], "grader");
    EXPECT_THAT(record["failure"]["reason"].get<std::string>(), HasSubstr(reasons[i]));
  }
  EXPECT_EQ(ended.records[3]["reward"], 0.0);
  EXPECT_EQ(ended.records[4]["reward"], 0.25);
  EXPECT_EQ(ended.records[5]["reward"], 1.0);
  for (size_t i = 3; i < 6; ++i) EXPECT_EQ(ended.records[i]["valid"], true);
}

}  // namespace
}  // namespace reprise::rollout
