#include "rollout/record.h"

#include <fmt/format.h>

#include <filesystem>
#include <nlohmann/json.hpp>

#include "absl/types/span.h"
#include "base/status_macros.h"
#include "engine/chat.h"
#include "replay/export.h"
#include "rollout/fields.h"
#include "rollout/identity.h"
#include "rollout/text.h"

namespace reprise::rollout {
namespace {

using replay::Segment;
using replay::TrajectoryState;

std::string Dump(const Json& json) {
  return json.dump(-1, ' ', false, Json::error_handler_t::replace);
}

// One assistant turn as a message, with the calls that it made under the ids that they got.
Json AssistantMessage(const TrajectoryState& state, const Segment& segment, const JobRun& run) {
  absl::Span<const int32_t> ids(state.tokens.data() + segment.begin, segment.end - segment.begin);
  engine::ParsedTurn turn = engine::ParseTurn(run.tokenizer()->Decode(ids), run.spec()->mode);
  Json message = {{"role", "assistant"}, {"content", turn.content}};
  if (!turn.reasoning.empty()) message["reasoning_content"] = turn.reasoning;
  for (size_t i = 0; i < turn.tool_calls.size(); ++i) {
    const engine::ToolCall& call = turn.tool_calls[i];
    message["tool_calls"].push_back(
        {{"id", CallId(state.start.trajectory_id(), segment.turn, static_cast<uint32_t>(i))},
         {"type", "function"},
         {"function", {{"name", call.name}, {"arguments", call.arguments_json}}}});
  }
  return message;
}

// The task's messages, then what the model and its tools said.
std::string Messages(const TrajectoryState& state, const Task& task, const JobRun& run) {
  Json messages = Json::parse(task.messages_json);
  for (const Segment& segment : state.segments) {
    if (segment.role == Segment::Role::kSampled) {
      messages.push_back(AssistantMessage(state, segment, run));
    }
    if (segment.role != Segment::Role::kTool) continue;
    for (const std::string& id : segment.call_ids) {
      for (const replay::CallState& call : state.calls) {
        if (call.issued.call_id() != id || !call.done) continue;
        messages.push_back(
            {{"role", "tool"}, {"tool_call_id", id}, {"content", call.done->result_text()}});
      }
    }
  }
  return Dump(messages);
}

}  // namespace

absl::StatusOr<const Task*> TaskOf(const TrajectoryState& state, const JobSpec& spec) {
  const Task* task = nullptr;
  for (const Task& each : spec.tasks) {
    if (each.group == state.start.group()) task = &each;
  }
  if (task == nullptr || task->id != state.start.task_id()) {
    return absl::DataLossError(fmt::format("trajectory {} is of task \"{}\", which is not in {}",
                                           state.start.trajectory_id(), state.start.task_id(),
                                           spec.tasks_path));
  }
  return task;
}

namespace {

// What the records of a job have in common.
replay::ExportContext ContextOf(const TrajectoryState& state, const JobRun& run,
                                bool without_timing) {
  journal::JobRecord record = run.record();
  replay::ExportContext context;
  context.run_id = run.id();
  context.group_size = run.group_size();
  context.engine.insert(record.engine().begin(), record.engine().end());
  context.response_text = ToUtf8(
      run.tokenizer()->Decode(absl::MakeConstSpan(state.tokens).subspan(state.prompt_len())));
  context.route_layers = record.route_layers();
  context.routes_per_token = record.routes_per_token();
  context.routes_are_u16 = record.routes_are_u16();
  context.without_timing = without_timing;
  return context;
}

// A trajectory that an agent outside drove: its task is what the agent calls its group.
absl::StatusOr<std::string> ExportExternal(const TrajectoryState& state, const JobRun& run,
                                           bool without_timing) {
  replay::ExportContext context = ContextOf(state, run, without_timing);
  const journal::ExternalStart& external = state.start.external();
  context.task_hash = Hex(Sha256(external.group()));
  context.dataset = "external";
  context.row = state.start.group();
  if (!state.exchanges.empty()) {
    context.temperature = state.exchanges.back().begun.temperature();
    context.top_p = state.exchanges.back().begun.top_p();
  }
  context.branch = external.branch();
  context.rollout_id = TrajectoryId(run.id(), state.start.group(), state.start.sample());
  const std::optional<size_t> index = run.Find(external.name());
  if (index.has_value())
    context.n_branches = static_cast<uint32_t>(run.record_ids(*index).size());
  return replay::ExportRecordJson(state, context);
}

}  // namespace

absl::StatusOr<std::string> ExportRecord(const TrajectoryState& state, const JobRun& run,
                                         bool without_timing) {
  if (run.external() && run.tokenizer() != nullptr)
    return ExportExternal(state, run, without_timing);
  const JobSpec* spec = run.spec();
  if (spec == nullptr || run.tokenizer() == nullptr) {
    return absl::FailedPreconditionError(
        fmt::format("records of job {} cannot be made: {}", run.id(), Message(run.why_no_spec())));
  }
  ASSIGN_OR_RETURN(const Task* task, TaskOf(state, *spec));
  replay::ExportContext context = ContextOf(state, run, without_timing);
  context.task_hash = task->hash;
  context.dataset = std::filesystem::path(spec->tasks_path).filename().string();
  context.row = task->group;
  context.temperature = spec->temperature;
  context.top_p = spec->top_p;
  context.messages_json = Messages(state, *task, run);
  return replay::ExportRecordJson(state, context);
}

}  // namespace reprise::rollout
