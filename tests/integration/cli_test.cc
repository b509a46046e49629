// Goal: the command as a user meets it: what it prints, its exit codes, its JSON, and that
// interrupted work goes on and never runs twice. Method: black box on the built binary and
// examples/tiny-v4, each test in a directory of its own.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/stat.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <sstream>

#include "base/fd.h"
#include "cli_process.h"
#include "tests/rank_processes.h"

namespace reprise::cli_testing {
namespace {

using nlohmann::json;
using ::testing::HasSubstr;
using ::testing::StartsWith;

const char kTiny[] = REPRISE_SOURCE_DIR "/examples/tiny-v4";

std::vector<json> Lines(const std::string& text) {
  std::vector<json> out;
  std::istringstream in(text);
  for (std::string line; std::getline(in, line);) out.push_back(json::parse(line));
  return out;
}

class CliTest : public ::testing::Test {
 protected:
  Ended Run(const std::vector<std::string>& args, const std::string& input = "") {
    return cli_testing::Run(scratch_.path(), args, input);
  }
  std::string Path(const std::string& name) const { return scratch_.path() + "/" + name; }
  std::string Write(const std::string& name, const std::string& text) const {
    std::ofstream(Path(name)) << text;
    return Path(name);
  }
  std::string Job(int tasks = 2, int samples = 2) const {
    return Write("job.toml", std::string("id = \"small\"\nmodel = \"") + kTiny + "\"\ntasks = \"" +
                                 kTiny + "/tasks/train.jsonl\"\nlimit = " + std::to_string(tasks) +
                                 "\ngroup_size = " + std::to_string(samples) +
                                 "\n"
                                 "thinking = \"chat\"\n[limits]\nmax_tokens = 256\n"
                                 "[sandbox]\ntier = \"function\"\n[[tools]]\ndefinition = \"" +
                                 kTiny +
                                 "/tool_sh.json\"\n"
                                 "command = [\"/bin/sh\", \"-c\", \"{command}\"]\n");
  }
  // One line on stderr, that begins with the program's name, and nothing on stdout.
  void ExpectError(const Ended& ended, int code, const std::string& what) {
    EXPECT_EQ(ended.code, code) << ended.err;
    EXPECT_EQ(ended.out, "");
    EXPECT_THAT(ended.err, StartsWith("reprise: "));
    EXPECT_THAT(ended.err, HasSubstr(what));
    EXPECT_EQ(std::count(ended.err.begin(), ended.err.end(), '\n'), 1) << ended.err;
  }
  // Whether sandboxes of the function tier can run here; the reason is printed when not.
  bool HasFunctionTier() {
    Ended doctor = Run({"doctor", "--json"});
    json tier = json::parse(doctor.out)["tiers"][0];
    if (!tier["usable"]) std::cerr << "function tier: " << tier["reason"] << "\n";
    return tier["usable"];
  }

  base::ScratchDir scratch_{"cli"};
};

TEST_F(CliTest, RolloutFromJobToTrajectories) {
  if (!HasFunctionTier()) GTEST_SKIP() << "the function tier is not usable here";
  const std::string job = Job(), state = Path("state"), out = Path("out");
  Ended run = Run({"rollout", "run", job, "--state", state, "--out", out});
  ASSERT_EQ(run.code, 0) << run.err;
  EXPECT_EQ(run.err, "");
  EXPECT_THAT(run.out, StartsWith("job small completed"));
  EXPECT_THAT(run.out, HasSubstr("\n  trajectories  4\n"));
  EXPECT_THAT(run.out, HasSubstr("\n  output        " + out + "/trajectories.jsonl\n"));
  EXPECT_THAT(run.out, HasSubstr("trajectory ls --job small --state " + state));
  std::vector<json> records = Lines(*base::ReadFile(out + "/trajectories.jsonl"));
  ASSERT_EQ(records.size(), 4u);
  std::vector<std::string> ids;
  for (const json& record : records) ids.push_back(record["rollout_id"]);
  EXPECT_TRUE(std::is_sorted(ids.begin(), ids.end()));

  // The same command again does nothing anew, and gives the same file.
  const std::string before = *base::ReadFile(out + "/trajectories.jsonl");
  Ended again = Run({"rollout", "run", job, "--state", state, "--out", out, "--json"});
  ASSERT_EQ(again.code, 0) << again.err;
  json summary = json::parse(again.out);
  EXPECT_EQ(summary["state"], "completed");
  EXPECT_EQ(summary["decoded_this_run"], 0);
  EXPECT_EQ(*base::ReadFile(out + "/trajectories.jsonl"), before);

  json jobs = json::parse(Run({"rollout", "ls", "--state", state, "--json"}).out);
  ASSERT_EQ(jobs.size(), 1u);
  EXPECT_EQ(jobs[0]["sealed"], 4);
  EXPECT_EQ(json::parse(Run({"rollout", "show", "small", "--state", state, "--json"}).out),
            jobs[0]);
  json list = json::parse(Run({"trajectory", "ls", "--state", state, "--json"}).out);
  ASSERT_EQ(list.size(), 4u);
  EXPECT_EQ(list[0]["trajectory_id"], ids[0]);
  json shown = json::parse(Run({"trajectory", "show", ids[3], "--state", state, "--json"}).out);
  EXPECT_EQ(shown["record"]["rollout_id"], ids[3]);
  EXPECT_FALSE(shown["log"].empty());
  Ended verified = Run({"trajectory", "verify", ids[3], "--state", state, "--json"});
  EXPECT_EQ(verified.code, 0) << verified.out << verified.err;
  EXPECT_EQ(json::parse(verified.out)["diverged"], false);
  Ended same = Run({"trajectory", "diff", ids[3], ids[3], "--state", state});
  EXPECT_EQ(same.code, 0) << same.err;
  EXPECT_EQ(same.out, "their logs are the same\n");
  Ended parted = Run({"trajectory", "diff", ids[0], ids[3], "--state", state});
  EXPECT_EQ(parted.code, 1) << parted.err;
  EXPECT_THAT(parted.out, HasSubstr("first difference in line 1\n- "));
  Ended saved = Run({"trajectory", "export", "--job", "small", "--state", state, "--out", "-"});
  EXPECT_EQ(saved.out, before);

  Ended resumed = Run({"rollout", "resume", "--state", state, "--out", Path("out2")});
  EXPECT_EQ(resumed.code, 0) << resumed.err;
  EXPECT_EQ(*base::ReadFile(Path("out2") + "/trajectories.jsonl"), before);

  ExpectError(Run({"rollout", "show", "none", "--state", state}), 1, "job \"none\" is not known");
  ExpectError(Run({"rollout", "pause", "small", "--state", state}), 1, "only a running job");
  ExpectError(Run({"trajectory", "show", "none", "--state", state}), 1, "\"none\" has no log here");
}

TEST_F(CliTest, KilledRolloutGoesOnWithTheSameBytes) {
  if (!HasFunctionTier()) GTEST_SKIP() << "the function tier is not usable here";
  const std::string job = Job(4, 8), state = Path("state");
  Ended whole = Run(
      {"rollout", "run", job, "--state", Path("whole"), "--out", Path("a"), "--without-timing"});
  ASSERT_EQ(whole.code, 0) << whole.err;
  {
    Process run(scratch_.path(), {"rollout", "run", job, "--state", state, "--out", Path("b")});
    // Killed as soon as its journal has the job: `ls` waits for the daemon of the run, or reads.
    json jobs = json::array();
    while (run.Running() && (jobs.empty() || jobs[0]["sampled_tokens"] == 0)) {
      Ended list = Run({"rollout", "ls", "--state", state, "--json"});
      if (list.code == 0) jobs = json::parse(list.out);
    }
    run.Signal(SIGKILL);
    ASSERT_EQ(run.Wait().code, -1) << "the job was done before it was killed";
  }
  Ended resumed =
      Run({"rollout", "resume", "--state", state, "--out", Path("b"), "--without-timing"});
  ASSERT_EQ(resumed.code, 0) << resumed.err;
  EXPECT_EQ(*base::ReadFile(Path("b/trajectories.jsonl")),
            *base::ReadFile(Path("a/trajectories.jsonl")));
  // The last to be taken over stood still for at least as long as the start of a daemon takes.
  const std::string again = Path("c");
  const Ended kept = Run({"rollout", "resume", "--state", state, "--out", again});
  ASSERT_EQ(kept.code, 0) << kept.err;
  double gap_ms = 0;
  std::istringstream lines(*base::ReadFile(again + "/trajectories.jsonl"));
  for (std::string line; std::getline(lines, line);) {
    const json record = json::parse(line);
    for (const json& resume : record["resume"])
      gap_ms = std::max(gap_ms, resume["gap_ms"].get<double>());
  }
  EXPECT_GT(gap_ms, 1);
}

TEST_F(CliTest, ARolloutOnSeveralRanksHasTheSameBytesAlsoWhenOneDies) {
  if (!HasFunctionTier()) GTEST_SKIP() << "the function tier is not usable here";
  const std::string job = Job(4, 8), state = Path("state");
  Ended whole = Run(
      {"rollout", "run", job, "--state", Path("whole"), "--out", Path("a"), "--without-timing"});
  ASSERT_EQ(whole.code, 0) << whole.err;
  {
    Process run(scratch_.path(), {"rollout", "run", job, "--state", state, "--out", Path("b"),
                                  "--ranks", "3", "--threads", "1"});
    json jobs = json::array();
    while (run.Running() && (jobs.empty() || jobs[0]["sampled_tokens"] == 0)) {
      Ended list = Run({"rollout", "ls", "--state", state, "--json"});
      if (list.code == 0) jobs = json::parse(list.out);
    }
    const std::vector<pid_t> ranks = RanksOf(run.pid());
    ASSERT_EQ(ranks.size(), 2u) << "the job was done before a rank was killed";
    ASSERT_EQ(::kill(ranks[0], SIGKILL), 0);
    const Ended lost = run.Wait();
    EXPECT_EQ(lost.code, 1);
    EXPECT_THAT(lost.err, HasSubstr("rank"));
    EXPECT_THAT(lost.err, HasSubstr("is gone"));
    EXPECT_THAT(RanksOf(run.pid()), testing::IsEmpty());
  }
  // On as many as are left.
  Ended resumed = Run({"rollout", "resume", "--state", state, "--out", Path("b"),
                       "--without-timing", "--ranks", "2", "--threads", "1"});
  ASSERT_EQ(resumed.code, 0) << resumed.err;
  EXPECT_EQ(*base::ReadFile(Path("b/trajectories.jsonl")),
            *base::ReadFile(Path("a/trajectories.jsonl")));
}

TEST_F(CliTest, ErrorsAreOneLineAndHaveTheirCode) {
  const std::string state = Path("state"), out = Path("out");
  ExpectError(Run({}), 2, "reprise --help");
  ExpectError(Run({"frob"}), 2, "\"frob\"");
  ExpectError(Run({"rollout", "frob"}), 2, "reprise rollout --help");
  ExpectError(Run({"rollout", "run", "x.toml"}), 2, "--out is required");
  ExpectError(Run({"rollout", "run", "x.toml", "--out", out}), 2, "--state");
  ExpectError(Run({"rollout", "run", "x.toml", "--out", out, "--state", state, "--threads", "-1"}),
              2, "--threads");
  ExpectError(Run({"rollout", "run", Path("x.toml"), "--out", out, "--state", state}), 1,
              "no job file " + Path("x.toml"));
  ExpectError(
      Run({"rollout", "run", Write("bad.toml", "id = 3\n"), "--out", out, "--state", state}), 1,
      "bad.toml: id is 3");
  ExpectError(Run({"rollout", "ls", "--state", Path("none")}), 1, "holds no rollouts");
  ExpectError(Run({"rollout", "resume", "--state", Path("none"), "--out", out}), 1,
              "no state directory");
  ExpectError(Run({"rollout", "ls", "--server", "unix:" + Path("none.sock")}), 1,
              "no rolloutd answers");
  ExpectError(Run({"sandbox", "ls"}), 2, "--state DIR");
  ExpectError(Run({"sandbox", "ls", "--state", Path("none")}), 1, "reprise up --state");
  ExpectError(Run({"model", "info", Path("none")}), 1, "config.json");
  ExpectError(Run({"chat", "encode", Path("none")}), 1, Path("none"));
  Ended help = Run({"rollout", "run", "--help"});
  EXPECT_EQ(help.code, 0);
  EXPECT_THAT(help.out, HasSubstr("--without-timing"));
  EXPECT_EQ(help.err, "");
}

TEST_F(CliTest, BulkGoesOnAfterAKillAndRunsEachLineOnce) {
  if (!HasFunctionTier()) GTEST_SKIP() << "the function tier is not usable here";
  constexpr int kLines = 12, kFree = 5, kParallel = 2;
  ::mkdir(Path("shared").c_str(), 0777);
  ::chmod(Path("shared").c_str(), 0777);
  // Each line notes that it ran. The first ones end at once, the others wait for a file.
  std::string text;
  for (int i = 0; i < kLines; ++i) {
    const std::string id = "line-" + std::to_string(i);
    std::string command = "mktemp /data/" + id + ".XXXXXX >/dev/null; ";
    if (i >= kFree) command += "until [ -e /data/go ]; do sleep 0.05; done; ";
    text += json({{"id", id}, {"command", command + "echo out-" + id}}).dump() + "\n";
  }
  const std::vector<std::string> command = {"bulk",
                                            "run",
                                            Write("in.jsonl", text),
                                            "--tier",
                                            "function",
                                            "--out",
                                            Path("out.jsonl"),
                                            "--parallel",
                                            std::to_string(kParallel),
                                            "--bind",
                                            Path("shared") + ":/data:rw",
                                            "--bind-root",
                                            Path("shared"),
                                            "--json"};
  // Every run of a line leaves a file of its own.
  auto ran = [&] {
    std::map<std::string, int> counts;
    for (const auto& entry : std::filesystem::directory_iterator(Path("shared"))) {
      const std::string name = entry.path().filename().string();
      if (name != "go") ++counts[name.substr(0, name.find('.'))];
    }
    return counts;
  };
  {
    Process run(scratch_.path(), command);
    while (run.Running() && ran().size() < kFree + kParallel) {
    }
    run.Signal(SIGKILL);
    Ended ended = run.Wait();
    ASSERT_EQ(ended.code, -1) << ended.out << ended.err;
  }
  std::ofstream(Path("shared/go")) << "";
  Ended again = Run(command);
  ASSERT_EQ(again.code, 0) << again.err;
  json summary = json::parse(again.out);
  EXPECT_EQ(summary["lines"], kLines);
  EXPECT_EQ(summary["exited_0"], kLines);
  EXPECT_GE(summary["replayed"], kFree - kParallel);
  std::map<std::string, int> counts = ran();
  EXPECT_EQ(counts.size(), static_cast<size_t>(kLines));
  for (const auto& [id, count] : counts) EXPECT_EQ(count, 1) << id;
  std::vector<json> results = Lines(*base::ReadFile(Path("out.jsonl")));
  ASSERT_EQ(results.size(), static_cast<size_t>(kLines));
  for (int i = 0; i < kLines; ++i) {
    EXPECT_EQ(results[i]["id"], "line-" + std::to_string(i));
    EXPECT_EQ(results[i]["stdout"], "out-line-" + std::to_string(i) + "\n");
    EXPECT_EQ(results[i]["outcome"], "exited");
  }
}

TEST_F(CliTest, BulkGivesUpWhenItsDaemonStaysAwayAndGoesOnWhenItIsBack) {
  if (!HasFunctionTier()) GTEST_SKIP() << "the function tier is not usable here";
  const std::string state = Path("daemon");
  ::mkdir(Path("shared").c_str(), 0777);
  ::chmod(Path("shared").c_str(), 0777);
  const std::vector<std::string> up = {"up",          "--state",      state,
                                       "--bind-root", Path("shared"), "--json"};
  const std::string line =
      json({{"id", "waits"},
            {"command", "mktemp /data/ran.XXXXXX; until [ -e /data/go ]; do sleep 0.05; done"}})
          .dump();
  std::string address;
  auto listening = [&](const Process& daemon) {
    const std::string said = daemon.Output();
    if (!said.ends_with("\n")) return false;
    address = json::parse(said)["sandboxd"][0].get<std::string>();
    return true;
  };
  std::vector<std::string> bulk = {"bulk",           "run",      Write("away.jsonl", line + "\n"),
                                   "--tier",         "function", "--out",
                                   Path("away.out"), "--bind",   Path("shared") + ":/data:rw",
                                   "--patience",     "1"};
  auto runs = [&] {
    int count = 0;
    for (const auto& entry : std::filesystem::directory_iterator(Path("shared")))
      count += entry.path().filename().string().starts_with("ran.");
    return count;
  };
  {
    Process daemon(scratch_.path(), up);
    while (daemon.Running() && !listening(daemon)) {
    }
    bulk.insert(bulk.end(), {"--server", address});
    Process run(scratch_.path(), bulk);
    while (run.Running() && runs() == 0) {
    }
    daemon.Signal(SIGKILL);
    daemon.Wait();
    ExpectError(run.Wait(), 1, "(waited 1 s; 0 of 1 lines are done)");
  }
  Process daemon(scratch_.path(), up);
  while (daemon.Running() && !listening(daemon)) {
  }
  std::ofstream(Path("shared/go")) << "";
  Ended again = Run(bulk);
  EXPECT_EQ(again.code, 0) << again.err;
  EXPECT_EQ(runs(), 1);
  daemon.Signal(SIGTERM);
  EXPECT_EQ(daemon.Wait().code, 0);
}

TEST_F(CliTest, BulkTellsOutcomesApartAndRefusesABadLineBeforeItRunsAny) {
  if (!HasFunctionTier()) GTEST_SKIP() << "the function tier is not usable here";
  const std::string good =
      "{\"id\": \"zero\", \"command\": \"true\"}\n"
      "{\"id\": \"three\", \"command\": \"echo bad >&2; exit 3\"}\n"
      "{\"id\": \"slow\", \"command\": \"sleep 60\", \"limits\": {\"timeout_ms\": 100}}\n"
      "{\"id\": \"cat\", \"argv\": [\"cat\", \"-\", \"f\"], \"stdin\": \"in \", "
      "\"files\": {\"f\": \"file\"}}\n"
      "{\"id\": \"bytes\", \"command\": \"printf '\\\\377'\"}\n";
  const std::string out = Path("out.jsonl");
  Ended bad = Run({"bulk", "run", Write("bad.jsonl", good + "{\"id\": \"x\"}\n"), "--tier",
                   "function", "--out", out});
  ExpectError(bad, 1, Path("bad.jsonl") + ":6: argv and command");
  EXPECT_FALSE(base::ReadFile(out).ok());

  Ended run = Run({"bulk", "run", Write("good.jsonl", good), "--tier", "function", "--out", out});
  ASSERT_EQ(run.code, 0) << run.err;
  EXPECT_EQ(run.err, "");
  EXPECT_THAT(run.out, HasSubstr("  exited with 0             3\n"));
  EXPECT_THAT(run.out, HasSubstr("  exited with another code  1\n"));
  EXPECT_THAT(run.out, HasSubstr("  timed out                 1\n"));
  std::vector<json> results = Lines(*base::ReadFile(out));
  ASSERT_EQ(results.size(), 5u);
  EXPECT_EQ(results[1]["exit_code"], 3);
  EXPECT_EQ(results[1]["stderr"], "bad\n");
  EXPECT_EQ(results[2]["outcome"], "timed_out");
  EXPECT_EQ(results[3]["stdout"], "in file");
  EXPECT_EQ(results[4]["stdout_base64"], "/w==");
  // What the platform could not do is no result of the program.
  Ended failed = Run({"bulk", "run", Write("gone.jsonl", "{\"id\": \"a\", \"argv\": [\"/none\"]}"),
                      "--tier", "function", "--out", Path("gone.out")});
  EXPECT_EQ(failed.code, 1);
  EXPECT_THAT(failed.out, HasSubstr("  setup failed  1\n"));
  EXPECT_THAT(failed.err, StartsWith("reprise: 1 of 1 lines did not run"));
  ExpectError(Run({"bulk", "run", Path("good.jsonl"), "--tier", "moon", "--out", out}), 2,
              "no tier \"moon\"");
}

TEST_F(CliTest, UpServesSandboxCommandsUntilItIsToldToEnd) {
  if (!HasFunctionTier()) GTEST_SKIP() << "the function tier is not usable here";
  const std::string state = Path("state");
  Process up(scratch_.path(), {"up", "--state", state, "--json"});
  while (up.Running() && up.Output().find('\n') == std::string::npos) {
  }
  json addresses = json::parse(up.Output());
  EXPECT_EQ(addresses["rolloutd"], "unix:" + state + "/rolloutd.sock");

  json tiers = json::parse(Run({"sandbox", "tiers", "--state", state, "--json"}).out);
  EXPECT_EQ(tiers[0]["tier"], "function");
  Ended made = Run({"sandbox", "create", "--tier", "function", "--id", "box", "--env", "WHO=me",
                    "--state", state});
  EXPECT_EQ(made.out, "box\n") << made.err;
  Ended ran = Run({"sandbox", "exec", "box", "--state", state, "--call-id", "c1", "--", "sh", "-c",
                   "echo $WHO; echo err >&2; exit 7"});
  EXPECT_EQ(ran.code, 7);
  EXPECT_EQ(ran.out, "me\n");
  EXPECT_EQ(ran.err, "err\n");
  Ended fed = Run({"sandbox", "exec", "-i", "box", "--state", state, "--", "cat"}, "typed");
  EXPECT_EQ(fed.out, "typed");
  Ended replayed = Run({"sandbox", "exec", "box", "--state", state, "--call-id", "c1", "--json",
                        "--", "sh", "-c", "echo $WHO; echo err >&2; exit 7"});
  EXPECT_EQ(replayed.code, 7);
  EXPECT_EQ(json::parse(replayed.out)["replayed"], true);
  EXPECT_EQ(json::parse(replayed.out)["stdout"], "me\n");
  Ended slow =
      Run({"sandbox", "exec", "box", "--state", state, "--timeout", "0.1", "--", "sleep", "60"});
  EXPECT_EQ(slow.code, 1);
  EXPECT_THAT(slow.err, StartsWith("reprise: the call ended without an exit code: timed_out"));
  EXPECT_EQ(Run({"sandbox", "logs", "box", "c1", "--state", state}).out, "me\n");
  EXPECT_EQ(json::parse(Run({"sandbox", "logs", "box", "--state", state, "--json"}).out).size(),
            3u);
  ExpectError(Run({"sandbox", "exec", "none", "--state", state, "--", "true"}), 1,
              "sandbox none does not exist");
  ExpectError(Run({"sandbox", "pause", "box", "--state", state}), 1, "function");
  // A rollout uses the daemon that holds the state directory.
  Ended rollout = Run({"rollout", "run", Job(), "--state", state, "--out", Path("out")});
  EXPECT_EQ(rollout.code, 0) << rollout.err;
  ExpectError(Run({"up", "--state", state}), 1, "is in use by process");
  EXPECT_EQ(Run({"sandbox", "rm", "box", "--state", state}).out, "removed box\n");
  json left = json::parse(Run({"sandbox", "ls", "--state", state, "--json"}).out);
  for (const json& one : left) EXPECT_NE(one["id"], "box");
  up.Signal(SIGINT);
  Ended ended = up.Wait();
  EXPECT_EQ(ended.code, 0) << ended.err;
  EXPECT_EQ(ended.err, "");
}

TEST_F(CliTest, ModelAndChat) {
  json info = json::parse(Run({"model", "info", kTiny, "--json"}).out);
  EXPECT_EQ(info["usable"], true);
  const std::string file = Path("l.safetensors");
  Ended logits = Run({"model", "logits", kTiny, "--tokens",
                      Write("ids.json", "[[0, 5, 6], [0, 9]]"), "--out", file, "--json"});
  ASSERT_EQ(logits.code, 0) << logits.err;
  std::string bytes = *base::ReadFile(file);
  uint64_t length = 0;
  std::memcpy(&length, bytes.data(), sizeof(length));
  json header = json::parse(bytes.substr(8, length));
  const uint64_t vocab = info["vocab_size"];
  EXPECT_EQ(header["logits.0"]["shape"], json({3, vocab}));
  EXPECT_EQ(header["logits.1"]["dtype"], "F32");
  EXPECT_EQ(bytes.size(), 8 + length + 5 * vocab * sizeof(float));
  ExpectError(
      Run({"model", "logits", kTiny, "--tokens", Write("bad.json", "[0, \"x\"]"), "--out", file}),
      1, "allowed: a token id");

  const std::vector<std::string> generate = {"model", "generate", kTiny,        "--prompt",
                                             "1+1?",  "--seed",   "3",          "--max-tokens",
                                             "8",     "--json",   "--thinking", "chat"};
  json first = json::parse(Run(generate).out), second = json::parse(Run(generate).out);
  EXPECT_EQ(first["ids"], second["ids"]);
  EXPECT_FALSE(first["ids"].empty());
  ExpectError(Run({"model", "generate", kTiny}), 2, "--prompt");

  const std::string golden = REPRISE_SOURCE_DIR "/tests/golden/encoding/";
  for (int i = 1; i <= 4; ++i) {
    Ended encoded = Run({"chat", "encode", golden + "test_input_" + std::to_string(i) + ".json",
                         "--thinking", i == 4 ? "chat" : "thinking"});
    EXPECT_EQ(encoded.out, *base::ReadFile(golden + "test_output_" + std::to_string(i) + ".txt"));
  }
  json turn = json::parse(Run({"chat", "parse", "-"}, "why</think>answer").out);
  EXPECT_EQ(turn["reasoning"], "why");
  EXPECT_EQ(turn["content"], "answer");
  EXPECT_EQ(turn["tool_calls"], json::array());
  EXPECT_EQ(turn["error"], nullptr);
}

TEST_F(CliTest, DoctorSaysWhatThereIs) {
  Ended doctor = Run({"doctor", "--json"});
  json facts = json::parse(doctor.out);
  for (const char* name : {"kernel", "CPU", "memory", "disk", "namespaces", "control groups",
                           "Landlock", "seccomp", "containerd", "CUDA"}) {
    EXPECT_FALSE(facts["host"][name]["value"].get<std::string>().empty()) << name;
  }
  EXPECT_EQ(facts["tiers"][0]["tier"], "function");
  bool any = false;
  for (const json& tier : facts["tiers"]) any = any || tier["usable"];
  EXPECT_EQ(doctor.code, any ? 0 : 1);
}

}  // namespace
}  // namespace reprise::cli_testing
