// Plays a trajectory for tests: the test says what the model samples and what a sandbox answers,
// TrajectoryLogic decides everything else. Every entry goes through the fold that the journal uses.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "rollout/trajectory.h"
#include "tests/unit/rollout/job_files.h"

namespace reprise::rollout {

inline constexpr int32_t kTinyEos = 1;

inline const engine::Tokenizer& TinyTokenizer() {
  static const engine::Tokenizer* tokenizer = [] {
    auto loaded = engine::Tokenizer::Load(std::string(kTinyModel) + "/tokenizer.json");
    EXPECT_TRUE(loaded.ok()) << loaded.status();
    return loaded->release();
  }();
  return *tokenizer;
}

// One call as the model writes it, in a block of its own.
inline std::string CallText(const std::string& tool, const std::string& parameter,
                            const std::string& value) {
  return "\n\n<｜DSML｜tool_calls>\n<｜DSML｜invoke name=\"" + tool +
         "\">\n<｜DSML｜parameter name=\"" + parameter + "\" string=\"true\">" + value +
         "</｜DSML｜parameter>\n</｜DSML｜invoke>\n</｜DSML｜tool_calls>";
}

inline CallOutput Exited(int code, const std::string& out, const std::string& err = "") {
  CallOutput output;
  output.result.set_outcome(sandbox::OUTCOME_EXITED);
  output.result.set_exit_code(code);
  output.result.mutable_usage()->set_wall_us(1500);
  output.stdout_data = out;
  output.stderr_data = err;
  return output;
}

inline CallOutput Ended(sandbox::Outcome outcome, const std::string& out = "") {
  CallOutput output = Exited(0, out);
  output.result.set_outcome(outcome);
  return output;
}

class Player {
 public:
  // `context`: of the engine, in tokens.
  explicit Player(std::unique_ptr<JobSpec> job, int64_t context = 100'000)
      : job_(std::move(job)),
        logic_(&TinyTokenizer(), kTinyEos, context, LogDigest()),
        plan_(MakePlan(*job_, 0)) {
    auto start = logic_.Begin(plan_);
    EXPECT_TRUE(start.ok()) << start.status();
    Write(*start);
  }
  static std::string LogDigest() { return std::string(32, 'd'); }

  // What the logic wants now; entries that it appends by itself are written on the way.
  Action Next() {
    Action action = logic_.Next(plan_, state_);
    while (action.kind == Action::Kind::kAppend) {
      for (const auto& entry : action.entries) Write(entry);
      action = logic_.Next(plan_, state_);
    }
    return action;
  }
  // Samples `text` token by token, asking before each; false when the logic wanted something else.
  bool Say(const std::string& text, bool end = true) {
    std::vector<int32_t> ids = TinyTokenizer().Encode(text);
    if (end) ids.push_back(kTinyEos);
    for (int32_t id : ids) {
      if (Next().kind != Action::Kind::kDecode) return false;
      journal::TrajectoryEntry entry;
      entry.mutable_sampled()->set_position(state_.tokens.size());
      entry.mutable_sampled()->add_ids(id);
      entry.mutable_sampled()->add_logprobs(-0.5f);
      entry.mutable_sampled()->set_weight_version(3);
      Write(entry);
    }
    return true;
  }
  void Answer(const Action& action, const CallOutput& output) {
    if (action.kind == Action::Kind::kGrade) return Write(logic_.OnGrade(output));
    ASSERT_EQ(action.kind, Action::Kind::kCall);
    Write(logic_.OnCall(plan_, action.request.call_id(), output));
  }
  void Write(const journal::TrajectoryEntry& entry) {
    absl::Status status = state_.Apply(entry);
    ASSERT_TRUE(status.ok()) << status;
  }
  // The text of what was fed last.
  std::string LastFed() const {
    const replay::Segment* fed = nullptr;
    for (const auto& segment : state_.segments) {
      if (segment.role == replay::Segment::Role::kTool) fed = &segment;
    }
    if (fed == nullptr) return "";
    return TinyTokenizer().Decode(
        absl::MakeConstSpan(state_.tokens).subspan(fed->begin, fed->end - fed->begin));
  }

  const replay::TrajectoryState& state() const { return state_; }
  const TrajectoryLogic& logic() const { return logic_; }
  const Plan& plan() const { return plan_; }
  std::unique_ptr<JobSpec> TakeJob() { return std::move(job_); }

 private:
  std::unique_ptr<JobSpec> job_;
  TrajectoryLogic logic_;
  Plan plan_;
  replay::TrajectoryState state_;
};

}  // namespace reprise::rollout
