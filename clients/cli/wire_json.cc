#include "clients/cli/wire_json.h"

#include <algorithm>
#include <cctype>
#include <nlohmann/json.hpp>

#include "absl/strings/escaping.h"
#include "rollout/text.h"

namespace reprise::cli {
namespace {

// "OUTCOME_TIMED_OUT" without its prefix, in lower case.
std::string Word(const std::string& name, std::string_view prefix) {
  std::string out = name.substr(name.starts_with(prefix) ? prefix.size() : 0);
  std::transform(out.begin(), out.end(), out.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  return out;
}

}  // namespace

std::string TierName(sandbox_wire::Tier tier) {
  return Word(sandbox_wire::Tier_Name(tier), "TIER_");
}
std::string OutcomeName(sandbox_wire::Outcome outcome) {
  return Word(sandbox_wire::Outcome_Name(outcome), "OUTCOME_");
}
std::string StateName(sandbox_wire::SandboxState state) {
  return Word(sandbox_wire::SandboxState_Name(state), "SANDBOX_STATE_");
}
std::string WatchKindName(sandbox_wire::WatchEventKind kind) {
  return Word(sandbox_wire::WatchEventKind_Name(kind), "WATCH_EVENT_KIND_");
}

Json ToJson(const rollout_wire::Job& job) {
  return {{"job_id", job.job_id()},
          {"state", job.state()},
          {"message", job.message()},
          {"trajectories", job.trajectories()},
          {"sealed", job.sealed()},
          {"failed", job.failed()},
          {"sampled_tokens", job.sampled_tokens()},
          {"fed_tokens", job.fed_tokens()},
          {"tool_calls", job.tool_calls()},
          {"mean_reward", job.rewarded() > 0 ? Json(job.mean_reward()) : Json()},
          {"rewarded", job.rewarded()},
          {"submitted_us", job.submitted_us()},
          {"completed_us", job.completed_us()},
          {"decoded_this_run", job.decoded_this_run()},
          {"decoded_again", job.decoded_again()},
          {"prefilled_again", job.prefilled_again()},
          {"resumed_trajectories", job.resumed_trajectories()},
          {"decode_seconds", job.decode_seconds()}};
}

Json ToJson(const rollout_wire::WeightVersion& version) {
  return {{"model", version.model()},         {"version", version.version()},
          {"directory", version.directory()}, {"digest", version.digest()},
          {"running", version.running()},     {"kv", version.kv()},
          {"loaded_us", version.loaded_us()}, {"in_force", version.in_force()}};
}

Json ToJson(const rollout_wire::Trajectory& trajectory) {
  return {{"trajectory_id", trajectory.trajectory_id()},
          {"job_id", trajectory.job_id()},
          {"task_id", trajectory.task_id()},
          {"status", trajectory.status()},
          {"stop_reason", trajectory.stop_reason()},
          {"tokens", trajectory.tokens()},
          {"sampled", trajectory.sampled()},
          {"calls", trajectory.calls()},
          {"reward", trajectory.has_reward() ? Json(trajectory.reward()) : Json()},
          {"parent_id", trajectory.parent_id().empty() ? Json() : Json(trajectory.parent_id())},
          {"at_step", trajectory.parent_id().empty() ? Json() : Json(trajectory.at_step())}};
}

Json ToJson(const sandbox_wire::Sandbox& sandbox) {
  Json labels = Json::object();
  for (const auto& [key, value] : sandbox.spec().labels()) labels[key] = value;
  Json binds = Json::array();
  for (const auto& bind : sandbox.spec().binds()) {
    binds.push_back({{"host_path", bind.host_path()},
                     {"sandbox_path", bind.sandbox_path()},
                     {"writable", bind.writable()}});
  }
  return {{"id", sandbox.id()},
          {"tier", TierName(sandbox.spec().tier())},
          {"image", sandbox.spec().image()},
          {"state", StateName(sandbox.state())},
          {"message", sandbox.message()},
          {"calls", sandbox.calls()},
          {"created_us", sandbox.created_us()},
          {"binds", binds},
          {"labels", labels}};
}

Json ToJson(const sandbox_wire::Result& result) {
  Json steps = Json::object();
  for (const auto& step : result.steps()) steps[step.step()] = step.duration_us();
  return {{"outcome", OutcomeName(result.outcome())},
          {"exit_code", result.exit_code()},
          {"signal", result.signal()},
          {"message", result.message()},
          {"truncated", result.truncated()},
          {"replayed", result.replayed()},
          {"stdout_bytes", result.stdout_bytes()},
          {"stderr_bytes", result.stderr_bytes()},
          {"usage",
           {{"wall_us", result.usage().wall_us()},
            {"cpu_us", result.usage().cpu_us()},
            {"memory_peak_bytes", result.usage().memory_peak_bytes()}}},
          {"steps_us", steps}};
}

Json ToJson(const sandbox_wire::Limits& limits) {
  return {{"timeout_ms", limits.timeout_ms()},
          {"memory_bytes", limits.memory_bytes()},
          {"pids", limits.pids()},
          {"cpu_ms", limits.cpu_ms()},
          {"file_bytes", limits.file_bytes()},
          {"disk_bytes", limits.disk_bytes()},
          {"open_files", limits.open_files()},
          {"output_bytes_kept", limits.output_bytes_kept()},
          {"output_bytes_max", limits.output_bytes_max()},
          {"best_effort", limits.best_effort()}};
}

Json ToJson(const sandbox_wire::TierInfo& tier) {
  // The map has no order of its own.
  std::map<std::string, std::string> verbs(tier.verbs().begin(), tier.verbs().end());
  return {{"tier", TierName(tier.tier())},
          {"usable", tier.usable()},
          {"reason", tier.reason()},
          {"verbs", verbs},
          {"default_limits", ToJson(tier.default_limits())}};
}

Json ToJson(const sandbox_wire::CallSummary& call) {
  bool completed = call.state() == sandbox_wire::CALL_STATE_COMPLETED;
  Json argv = Json::array();
  for (const std::string& word : call.argv()) argv.push_back(word);
  return {{"call_id", call.call_id()},
          {"state", completed ? "completed" : "running"},
          {"argv", argv},
          {"intent_us", call.intent_us()},
          {"result_us", call.result_us()},
          {"result", completed ? ToJson(call.result()) : Json()}};
}

Json ToJson(const sandbox_wire::Image& image) {
  return {{"name", image.name()},
          {"digest", image.digest()},
          {"size_bytes", image.size_bytes()},
          {"layers", image.layers()}};
}

void PutBytes(Json* object, const std::string& name, std::string_view bytes) {
  std::string text = rollout::ToUtf8(bytes);
  bool exact = text == bytes;
  (*object)[name] = std::move(text);
  if (!exact) {
    (*object)[name + "_base64"] = absl::Base64Escape(absl::string_view(bytes.data(), bytes.size()));
  }
}

}  // namespace reprise::cli
