// Goal: a structured job makes no malformed call however hot it samples, and a trajectory that is
// cut inside a call goes on as if it had not been. Method: the tiny model at a temperature at which
// it garbles its calls; sandboxes that answer at once.
#include <algorithm>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "engine/chat.h"
#include "rollout/job_table.h"
#include "rollout/text.h"
#include "tests/unit/rollout/held_sandboxes.h"
#include "tests/unit/rollout/job_files.h"
#include "tests/unit/rollout/play.h"
#include "tests/unit/rollout/scratch_log.h"

namespace reprise::rollout {
namespace {

using replay::TrajectoryState;
using testing::HasSubstr;

constexpr int kSamples = 8;

std::string Job(const std::string& sampling) {
  return "group_size = 8\n" + std::string(kJobTop) + "[sampling]\ntemperature = 2.0\n" + sampling +
         "[limits]\nmax_tokens = 260\nmax_turns = 3\n" + kShTool +
         "[reward]\nkind = \"command\"\ncommand = [\"judge\"]\n";
}

class StructuredJobTest : public testing::Test {
 protected:
  // A daemon's life on a log.
  struct Daemon {
    explicit Daemon(ScratchLog* log)
        : jobs(log->get(), journal::DURABILITY_NONE, &sandboxes,
               engine::EngineOptions{.threads = 1}, SchedulerOptions()) {}
    ~Daemon() { sandboxes.Shutdown(); }
    HeldSandboxes sandboxes;
    JobTable jobs;
  };

  std::shared_ptr<JobRun> Submit(Daemon* daemon, const std::string& toml) {
    auto run = daemon->jobs.Submit(toml, files_.path(), "j", "job.toml");
    EXPECT_TRUE(run.ok()) << run.status();
    return *std::move(run);
  }
  static std::vector<TrajectoryState> States(ScratchLog* log) {
    std::vector<TrajectoryState> out;
    for (int i = 0; i < kSamples; ++i) {
      auto entries = (*log)->Read("j/000000/" + std::to_string(i));
      EXPECT_TRUE(entries.ok()) << entries.status();
      auto state = replay::Fold(*entries);
      EXPECT_TRUE(state.ok()) << state.status();
      out.push_back(*std::move(state));
    }
    return out;
  }
  std::vector<TrajectoryState> Run(const std::string& toml) {
    ScratchLog log;
    {
      Daemon daemon(&log);
      const auto run = Submit(&daemon, toml);
      EXPECT_TRUE(WaitFor(*run, [&] { return run->Is(journal::JOB_STATE_COMPLETED); }));
    }
    return States(&log);
  }
  // Of turns that ended: those whose markup does not parse, and those with calls.
  static std::pair<int, int> Turns(const TrajectoryState& state) {
    int malformed = 0, calling = 0;
    for (const replay::Segment& segment : state.segments) {
      if (segment.role != replay::Segment::Role::kSampled) continue;
      if (state.tokens[segment.end - 1] != kTinyEos) continue;
      const auto ids =
          absl::MakeConstSpan(state.tokens).subspan(segment.begin, segment.end - segment.begin);
      const auto turn = engine::ParseTurn(TinyTokenizer().Decode(ids), engine::ThinkingMode::kChat);
      malformed += turn.error.empty() ? 0 : 1;
      calling += turn.tool_calls.empty() ? 0 : 1;
    }
    return {malformed, calling};
  }

  JobFiles files_;
};

TEST_F(StructuredJobTest, NoCallIsMalformed) {
  int malformed = 0, calling = 0, garbled = 0;
  for (const TrajectoryState& state : Run(Job(""))) {
    EXPECT_TRUE(state.allowed_counts.empty());
    garbled += Turns(state).first;
  }
  EXPECT_GT(garbled, 0) << "the model calls well without help: this shows nothing";
  for (const TrajectoryState& state : Run(Job("structured = true\ntool_choice = \"required\"\n"))) {
    malformed += Turns(state).first;
    calling += Turns(state).second;
    for (const replay::CallState& call : state.calls) {
      if (!call.done) continue;
      EXPECT_EQ(call.done->error(), "");
    }
    // Every sampled token of the first turn stood under a mask, no other kind of token did.
    ASSERT_LE(state.allowed_counts.size(), state.tokens.size());
    ASSERT_EQ(state.allowed_counts.size(), state.allowed_logprobs.size());
    const replay::Segment& first = state.segments[1];
    for (size_t i = 0; i < state.allowed_counts.size(); ++i) {
      const bool masked = state.allowed_counts[i] > 0;
      EXPECT_LE(state.allowed_logprobs[i], 0);
      EXPECT_TRUE(!masked || state.loss_mask[i] == 1) << i;
      EXPECT_TRUE(masked || i < first.begin || i >= first.end) << i;
      EXPECT_TRUE(state.allowed_counts[i] != 1 || state.logprobs[i] == 0) << i;
    }
  }
  EXPECT_EQ(malformed, 0);
  EXPECT_GT(calling, 2);
}

TEST_F(StructuredJobTest, ACutInsideACallIsNotSeen) {
  const std::string job = Job("structured = true\ntool_choice = \"sh\"\n");
  const std::vector<TrajectoryState> whole = Run(job);
  uint64_t sampled = 0;
  for (const TrajectoryState& state : whole)
    sampled += static_cast<uint64_t>(
        std::count(state.loss_mask.begin(), state.loss_mask.end(), uint8_t{1}));
  for (const uint64_t cut : {sampled / 8, sampled / 3, sampled / 2}) {
    ScratchLog log;
    {
      Daemon daemon(&log);
      const auto run = Submit(&daemon, job);
      ASSERT_TRUE(WaitFor(*run, [&] { return run->decoded >= cut; }));
    }
    {
      Daemon daemon(&log);
      ASSERT_TRUE(daemon.jobs.ResumeAll().ok());
      auto run = daemon.jobs.Find("j");
      ASSERT_TRUE(run.ok()) << run.status();
      ASSERT_TRUE(WaitFor(**run, [&] { return (*run)->Is(journal::JOB_STATE_COMPLETED); }));
      EXPECT_EQ((*run)->decoded_again, 0u);
    }
    const std::vector<TrajectoryState> found = States(&log);
    int resumed = 0;
    for (size_t i = 0; i < found.size(); ++i) {
      resumed += found[i].resumed.empty() ? 0 : 1;
      EXPECT_EQ(found[i].tokens, whole[i].tokens) << cut << " " << i;
      EXPECT_EQ(found[i].logprobs, whole[i].logprobs) << cut << " " << i;
      EXPECT_EQ(found[i].allowed_counts, whole[i].allowed_counts) << cut << " " << i;
      EXPECT_EQ(found[i].allowed_logprobs, whole[i].allowed_logprobs) << cut << " " << i;
    }
    EXPECT_GT(resumed, 0) << cut;
  }
}

TEST_F(StructuredJobTest, WhatCannotBeEnforcedIsRefused) {
  const auto refusal = [&](const std::string& sampling, const std::string& tools) {
    return Message(
        files_.Load(std::string(kJobTop) + "[sampling]\n" + sampling + tools + kMatchReward)
            .status());
  };
  const std::string pattern =
      "\n[[tools]]\nname = \"sh\"\nparameters = '{\"type\": \"object\", \"properties\": "
      "{\"command\": {\"type\": \"string\", \"pattern\": \"a\"}}}'\ncommand = [\"sh\"]\n";
  EXPECT_EQ(refusal("", pattern), "");
  EXPECT_THAT(refusal("structured = true\n", pattern),
              HasSubstr("tasks.jsonl:1: sampling.structured: tool \"sh\": "
                        "parameters.properties.command: the keyword \"pattern\""));
  EXPECT_THAT(refusal("tool_choice = \"required\"\n", kShTool),
              HasSubstr("sampling.tool_choice stands without structured = true"));
  EXPECT_THAT(refusal("structured = true\ntool_choice = \"cat\"\n", kShTool),
              HasSubstr("there is no tool \"cat\""));
  EXPECT_THAT(refusal("structured = true\ntool_choice = \"required\"\n", ""),
              HasSubstr("the task has no tools"));
  EXPECT_EQ(refusal("structured = true\n", ""), "");
}

}  // namespace
}  // namespace reprise::rollout
