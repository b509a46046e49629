#include "rollout/record.h"

#include <fmt/format.h>

#include <filesystem>

#include "absl/types/span.h"
#include "base/status_macros.h"
#include "replay/export.h"
#include "rollout/advantage.h"
#include "rollout/identity.h"
#include "rollout/messages.h"
#include "rollout/text.h"

namespace reprise::rollout {

using replay::TrajectoryState;

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
  context.attempt = AttemptOf(state.start.trajectory_id());
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

// Of a sample of a group that is whole.
std::optional<float> AdvantageOf(const TrajectoryState& state, const JobRun& run) {
  const size_t index = run.PlaceOf(state.start);
  if (run.trajectory_id(index) != state.start.trajectory_id()) return std::nullopt;
  const std::vector<std::optional<float>> rewards = run.GroupRewards(run.position_of(index));
  return rewards.empty() ? std::nullopt : Advantage(rewards, state.start.sample());
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
  context.top_k = spec->top_k;
  context.min_p = spec->min_p;
  context.with_advantage = spec->advantage;
  if (spec->advantage) context.advantage = AdvantageOf(state, run);
  const size_t place = run.PlaceOf(state.start);
  const size_t records = run.record_ids(place).size();
  const bool stands =
      state.start.has_fork() || run.trajectory_id(place) == state.start.trajectory_id();
  if (stands && records > 1) {
    context.rollout_id = run.trajectory_id(place);
    context.branch = state.start.fork().number();
    context.n_branches = static_cast<uint32_t>(records);
  }
  context.messages_json = MessagesJson(state, *task, *run.tokenizer(), spec->mode);
  return replay::ExportRecordJson(state, context);
}

}  // namespace reprise::rollout
