#include "rollout/trajectory.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>

#include "absl/types/span.h"
#include "base/status_macros.h"
#include "rollout/identity.h"
#include "rollout/messages.h"
#include "rollout/render.h"
#include "rollout/reward.h"
#include "rollout/text.h"

namespace reprise::rollout {
namespace {

using replay::CallState;
using replay::TrajectoryState;

// A call that the model asked for, and why no sandbox may run it (empty: one may).
struct Wanted {
  std::string tool, arguments_json, error;
  Tool::Command command;
  const Tool* definition = nullptr;
};

Wanted Resolve(const Task& task, const engine::ToolCall& call) {
  Wanted wanted{.tool = ToUtf8(call.name),
                .arguments_json = ToUtf8(call.arguments_json),
                .error = "",
                .command = {}};
  for (const Tool* tool : task.tools) {
    if (tool->name() == call.name) wanted.definition = tool;
  }
  if (wanted.definition == nullptr) {
    std::vector<std::string> names;
    for (const Tool* tool : task.tools) names.push_back(tool->name());
    wanted.error = names.empty()
                       ? fmt::format("unknown tool \"{}\", there are no tools", wanted.tool)
                       : fmt::format("unknown tool \"{}\", available: {}", wanted.tool,
                                     fmt::join(names, ", "));
    return wanted;
  }
  auto command = wanted.definition->Bind(call.arguments_json);
  if (command.ok()) {
    wanted.command = *std::move(command);
  } else {
    wanted.error = ToUtf8(fmt::format("tool \"{}\": {}", wanted.tool, Message(command.status())));
  }
  return wanted;
}

Action Append(journal::TrajectoryEntry entry) {
  Action action{.kind = Action::Kind::kAppend, .entries = {}, .request = {}, .judge_body = {}};
  action.entries.push_back(std::move(entry));
  return action;
}

}  // namespace

// An assistant turn that ended, and what is known of the calls that it makes.
struct TrajectoryLogic::Turn {
  uint64_t begin = 0, end = 0;  // its tokens
  uint32_t number = 0;          // from 0
  std::vector<Wanted> wanted;
  std::vector<const CallState*> issued;  // of this turn, in order
  uint64_t calls_before = 0;             // issued by earlier turns
};

Plan MakePlan(const JobSpec& job, size_t index, uint32_t attempt) {
  const Task& task = job.tasks[index / job.group_size];
  Plan plan;
  plan.job = &job;
  plan.task = &task;
  plan.sample = static_cast<uint32_t>(index % job.group_size);
  plan.id = AttemptId(TrajectoryId(job.id, task.group, plan.sample), attempt);
  plan.seed = TrajectorySeed(job.seed, task.id, plan.sample, attempt);
  return plan;
}

journal::TrajectoryEntry SealEntry(std::string_view status, std::string_view stop_reason,
                                   std::string_view failure_kind, std::string_view failure) {
  journal::TrajectoryEntry entry;
  journal::Sealed* sealed = entry.mutable_sealed();
  sealed->set_status(std::string(status));
  sealed->set_stop_reason(std::string(stop_reason));
  sealed->set_failure_kind(std::string(failure_kind));
  sealed->set_failure(ToUtf8(failure));
  return entry;
}

void NoteAllowed(const engine::SampledToken& token, journal::SampledTokens* sampled) {
  if (token.allowed == 0) return;
  sampled->add_allowed_counts(static_cast<uint32_t>(token.allowed));
  sampled->add_allowed_logprobs(token.allowed_logprob);
}

journal::TrajectoryEntry DroppedEntry() {
  return SealEntry("aborted", "dropped", "", "another sample of its group cannot be used");
}

TrajectoryLogic::TrajectoryLogic(const engine::Tokenizer* tokenizer, int32_t eos_id,
                                 int64_t max_context, std::string log_engine_digest)
    : tokenizer_(tokenizer),
      eos_id_(eos_id),
      max_context_(max_context),
      log_engine_digest_(std::move(log_engine_digest)) {}

int64_t TrajectoryLogic::Context(const Plan& plan) const {
  int64_t wanted = plan.job->max_context;
  return wanted > 0 ? std::min(wanted, max_context_) : max_context_;
}

absl::StatusOr<journal::TrajectoryEntry> TrajectoryLogic::Begin(const Plan& plan) const {
  engine::ChatOptions options;
  options.mode = plan.job->mode;
  options.effort = plan.job->effort;
  options.tools_json = plan.task->tools_json;
  ASSIGN_OR_RETURN(std::vector<engine::PromptPiece> pieces,
                   engine::EncodeChat(plan.task->messages_json, options));
  std::vector<int32_t> ids = tokenizer_->Encode(pieces);
  journal::TrajectoryEntry entry;
  journal::TrajectoryStart* start = entry.mutable_start();
  start->set_trajectory_id(plan.id);
  start->set_job_id(plan.job->id);
  start->set_group(plan.task->group);
  start->set_sample(plan.sample);
  start->set_task_id(plan.task->id);
  start->set_seed(plan.seed);
  start->mutable_prompt_ids()->Add(ids.begin(), ids.end());
  start->set_engine_digest(log_engine_digest_);
  return entry;
}

std::optional<TrajectoryLogic::Ending> TrajectoryLogic::Limit(const Plan& plan,
                                                              const TrajectoryState& state) const {
  int64_t size = static_cast<int64_t>(state.tokens.size());
  int64_t prompt = static_cast<int64_t>(state.prompt_len());
  if (size >= Context(plan)) {
    if (size > prompt) return Ending{"truncated", "context", "", ""};
    return Ending{"failed", "context", "env",
                  fmt::format("the prompt has {} tokens, the context has room for {}", prompt,
                              Context(plan))};
  }
  if (size - prompt >= plan.job->max_tokens) return Ending{"truncated", "length", "", ""};
  return std::nullopt;
}

Action TrajectoryLogic::Next(const Plan& plan, const TrajectoryState& state) const {
  if (state.sealed) return {};
  bool turn_ended = state.loss_mask.back() != 0 && state.tokens.back() == eos_id_;
  if (turn_ended) return AfterTurn(plan, state);
  if (std::optional<Ending> limit = Limit(plan, state)) return Finish(plan, state, *limit);
  return {.kind = Action::Kind::kDecode, .entries = {}, .request = {}, .judge_body = {}};
}

TrajectoryLogic::Turn TrajectoryLogic::ReadTurn(const Plan& plan,
                                                const TrajectoryState& state) const {
  Turn turn;
  turn.begin = state.segments.back().begin;
  turn.end = state.tokens.size();
  turn.number = state.segments.back().turn;
  auto ids = absl::MakeConstSpan(state.tokens).subspan(turn.begin, turn.end - 1 - turn.begin);
  engine::ParsedTurn parsed = engine::ParseTurn(tokenizer_->Decode(ids), plan.job->mode);
  for (const engine::ToolCall& call : parsed.tool_calls) {
    turn.wanted.push_back(Resolve(*plan.task, call));
  }
  if (!parsed.error.empty()) {
    // One call that nobody runs carries the message back to the model.
    turn.wanted.clear();
    turn.wanted.push_back(
        {.tool = "", .arguments_json = "", .error = ToUtf8(parsed.error), .command = {}});
  }
  for (const CallState& call : state.calls) {
    if (call.issued.span_end() == turn.end) {
      turn.issued.push_back(&call);
    } else {
      ++turn.calls_before;
    }
  }
  return turn;
}

Action TrajectoryLogic::AfterTurn(const Plan& plan, const TrajectoryState& state) const {
  Turn turn = ReadTurn(plan, state);
  if (turn.wanted.empty()) return Finish(plan, state, {"completed", "stop", "", ""});
  if (turn.number + 1 >= plan.job->max_turns) {
    return Finish(plan, state, {"truncated", "turn_limit", "", ""});
  }
  if (static_cast<int64_t>(turn.calls_before + turn.wanted.size()) > plan.job->max_tool_calls) {
    return Finish(plan, state, {"truncated", "tool_limit", "", ""});
  }
  for (const CallState* call : turn.issued) {
    if (!call->done || !IsPlatformFailure(call->done->outcome())) continue;
    std::string failure = fmt::format("call {} ended with {}", call->issued.call_id(),
                                      sandbox::Outcome_Name(call->done->outcome()));
    if (!call->done->error().empty()) failure += ": " + call->done->error();
    return Finish(plan, state, {"failed", "", "infra", std::move(failure)});
  }
  if (turn.issued.size() < turn.wanted.size()) return Issue(plan, state, turn);
  for (size_t i = 0; i < turn.issued.size(); ++i) {
    if (turn.issued[i]->done) continue;
    const Wanted& wanted = turn.wanted[i];
    if (!wanted.error.empty()) {
      journal::TrajectoryEntry entry;
      journal::CallDone* done = entry.mutable_done();
      done->set_call_id(turn.issued[i]->issued.call_id());
      done->set_error(wanted.error);
      done->set_result_text(RenderError(wanted.error));
      return Append(std::move(entry));
    }
    Action action{.kind = Action::Kind::kCall, .entries = {}, .request = {}, .judge_body = {}};
    sandbox::ExecuteRequest& request = action.request;
    request.set_sandbox_id(SandboxId(plan.id));
    request.set_call_id(turn.issued[i]->issued.call_id());
    for (const std::string& arg : wanted.command.argv) request.add_argv(arg);
    request.set_stdin(wanted.command.stdin_text);
    auto* variable = request.add_env();
    variable->set_name("REPRISE_CALL_ID");
    variable->set_value(request.call_id());
    *request.mutable_limits() = wanted.definition->limits();
    sandbox::TokenSpan* span = request.mutable_span();
    span->set_trajectory_id(plan.id);
    span->set_begin(turn.begin);
    span->set_end(turn.end);
    span->set_weight_version(state.version_spans.back().version);
    return action;
  }
  return Feed(plan, state, turn);
}

Action TrajectoryLogic::Issue(const Plan& plan, const TrajectoryState& state,
                              const Turn& turn) const {
  Action action{.kind = Action::Kind::kAppend, .entries = {}, .request = {}, .judge_body = {}};
  for (size_t i = turn.issued.size(); i < turn.wanted.size(); ++i) {
    journal::TrajectoryEntry entry;
    journal::CallIssued* issued = entry.mutable_issued();
    issued->set_call_id(CallId(plan.id, turn.number, static_cast<uint32_t>(i)));
    issued->set_tool(turn.wanted[i].tool);
    issued->set_arguments_json(turn.wanted[i].arguments_json);
    issued->set_span_begin(turn.begin);
    issued->set_span_end(turn.end);
    action.entries.push_back(std::move(entry));
  }
  return action;
}

Action TrajectoryLogic::Feed(const Plan& plan, const TrajectoryState& state,
                             const Turn& turn) const {
  std::vector<std::string> results;
  journal::TrajectoryEntry entry;
  journal::FedTokens* fed = entry.mutable_fed();
  for (const CallState* call : turn.issued) {
    results.push_back(call->done->result_text());
    fed->add_call_ids(call->issued.call_id());
  }
  std::vector<int32_t> ids = tokenizer_->Encode(engine::EncodeToolResults(results, plan.job->mode));
  // A result that leaves no room for an answer ends the trajectory instead of being fed.
  int64_t size = static_cast<int64_t>(turn.end + ids.size());
  if (size >= Context(plan)) return Finish(plan, state, {"truncated", "context", "", ""});
  if (size - static_cast<int64_t>(state.prompt_len()) >= plan.job->max_tokens) {
    return Finish(plan, state, {"truncated", "length", "", ""});
  }
  fed->set_position(turn.end);
  fed->mutable_ids()->Add(ids.begin(), ids.end());
  return Append(std::move(entry));
}

std::string TrajectoryLogic::FinalContent(const Plan& plan, const TrajectoryState& state) const {
  if (state.segments.empty() || state.segments.back().role != replay::Segment::Role::kSampled) {
    return "";
  }
  auto ids = absl::MakeConstSpan(state.tokens).subspan(state.segments.back().begin);
  if (!ids.empty() && ids.back() == eos_id_) ids.remove_suffix(1);
  return engine::ParseTurn(tokenizer_->Decode(ids), plan.job->mode).content;
}

Action TrajectoryLogic::Finish(const Plan& plan, const TrajectoryState& state,
                               const Ending& ending) const {
  if (!ending.failure_kind.empty()) {
    return Append(
        SealEntry(ending.status, ending.stop_reason, ending.failure_kind, ending.failure));
  }
  if (state.reward) {
    bool graded = state.reward->has_value();
    return Append(SealEntry(ending.status, ending.stop_reason, graded ? "" : "grader",
                            state.reward->failure()));
  }
  std::string response = FinalContent(plan, state);
  if (plan.task->reward.kind == RewardSpec::Kind::kMatch) {
    journal::TrajectoryEntry entry;
    *entry.mutable_reward() = MatchReward(plan.task->reward, response);
    return Append(std::move(entry));
  }
  if (plan.task->reward.kind == RewardSpec::Kind::kHttp) {
    return {.kind = Action::Kind::kJudge,
            .entries = {},
            .request = {},
            .judge_body = JudgeBody(*plan.task, state,
                                    MessagesJson(state, *plan.task, *tokenizer_, plan.job->mode),
                                    response, ending.status, ending.stop_reason)};
  }
  return {.kind = Action::Kind::kGrade,
          .entries = {},
          .request = RewardRequest(*plan.task, plan.id, response),
          .judge_body = {}};
}

journal::TrajectoryEntry TrajectoryLogic::OnCall(const Plan& plan, const std::string& call_id,
                                                 const CallOutput& output) const {
  Rendered rendered = RenderResult(output, static_cast<uint64_t>(plan.job->tool_result_bytes));
  journal::TrajectoryEntry entry;
  journal::CallDone* done = entry.mutable_done();
  done->set_call_id(call_id);
  done->set_outcome(output.result.outcome());
  done->set_exit_code(output.result.exit_code());
  if (IsPlatformFailure(output.result.outcome())) done->set_error(ToUtf8(output.result.message()));
  done->set_result_text(std::move(rendered.text));
  done->set_replayed(output.result.replayed());
  done->set_truncated(rendered.cut);
  done->set_duration_us(output.result.usage().wall_us());
  return entry;
}

journal::TrajectoryEntry TrajectoryLogic::OnGrade(const CallOutput& output) const {
  journal::TrajectoryEntry entry;
  *entry.mutable_reward() = CommandReward(output);
  entry.mutable_reward()->set_duration_us(output.result.usage().wall_us());
  return entry;
}

journal::TrajectoryEntry TrajectoryLogic::OnJudge(journal::RewardDone done) {
  journal::TrajectoryEntry entry;
  *entry.mutable_reward() = std::move(done);
  return entry;
}

}  // namespace reprise::rollout
