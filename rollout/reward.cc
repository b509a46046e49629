#include "rollout/reward.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "absl/strings/numbers.h"
#include "rollout/identity.h"
#include "rollout/text.h"

namespace reprise::rollout {
namespace {

journal::RewardDone Value(float value) {
  journal::RewardDone done;
  done.set_has_value(true);
  done.set_value(value);
  return done;
}

void AddEnv(sandbox::ExecuteRequest* request, const std::string& name, const std::string& value) {
  auto* variable = request->add_env();
  variable->set_name(name);
  variable->set_value(value);
}

}  // namespace

journal::RewardDone MatchReward(const RewardSpec& spec, std::string_view response) {
  return Value(Strip(response) == Strip(spec.answer) ? 1.0f : 0.0f);
}

sandbox::ExecuteRequest RewardRequest(const Task& task, const std::string& trajectory_id,
                                      std::string_view response) {
  std::string text = ToUtf8(response);
  sandbox::ExecuteRequest request;
  request.set_sandbox_id(SandboxId(trajectory_id));
  request.set_call_id(RewardCallId(trajectory_id));
  for (const std::string& arg : task.reward.argv) request.add_argv(arg);
  *request.mutable_limits() = task.reward.limits;
  Json input = {{"task", Json::parse(task.task_json)},
                {"response", text},
                {"metadata", Json::parse(task.metadata_json)}};
  request.set_stdin(input.dump());

  std::replace(text.begin(), text.end(), '\0', ' ');
  if (text.size() > kMaxResponseEnvBytes) {
    text = ToUtf8(std::string_view(text).substr(text.size() - kMaxResponseEnvBytes));
  }
  AddEnv(&request, "REPRISE_RESPONSE", text);
  AddEnv(&request, "REPRISE_CALL_ID", request.call_id());
  for (const auto& [name, value] : task.reward.env) AddEnv(&request, name, value);
  return request;
}

journal::RewardDone CommandReward(const CallOutput& output) {
  const sandbox::Result& result = output.result;
  if (result.outcome() == sandbox::OUTCOME_EXITED && result.exit_code() == 1) return Value(0);
  if (result.outcome() == sandbox::OUTCOME_EXITED && result.exit_code() == 0) {
    std::string_view text = Strip(output.stdout_data);
    size_t line = text.find_last_of('\n');
    float value = 0;
    bool number =
        absl::SimpleAtof(std::string(line == text.npos ? text : text.substr(line + 1)), &value);
    return Value(number && std::isfinite(value) ? value : 1.0f);
  }
  journal::RewardDone done;
  done.set_failure(result.outcome() == sandbox::OUTCOME_EXITED
                       ? fmt::format("the reward command exited with code {}, allowed: 0 or 1",
                                     result.exit_code())
                       : fmt::format("the reward command ended with {}: {}",
                                     sandbox::Outcome_Name(result.outcome()),
                                     ToUtf8(result.message())));
  return done;
}

}  // namespace reprise::rollout
