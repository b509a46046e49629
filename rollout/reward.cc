#include "rollout/reward.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "absl/strings/numbers.h"
#include "rollout/fields.h"
#include "rollout/identity.h"
#include "rollout/text.h"

namespace reprise::rollout {
namespace {

constexpr size_t kMaxFailureBytes = 512;

journal::RewardDone Value(float value) {
  journal::RewardDone done;
  done.set_has_value(true);
  done.set_value(value);
  return done;
}

// Why a value of an answer is no reward; empty where it is one.
std::string NoNumber(const Json& value) {
  if (value.is_null()) return "is null";
  if (!value.is_number()) return fmt::format("is of type {}, allowed: a number", value.type_name());
  return std::isfinite(static_cast<float>(value.get<double>())) ? "" : "is no finite float32";
}

void AddEnv(sandbox::ExecuteRequest* request, const std::string& name, const std::string& value) {
  auto* variable = request->add_env();
  variable->set_name(name);
  variable->set_value(value);
}

}  // namespace

journal::RewardDone NoReward(std::string_view why) {
  journal::RewardDone done;
  done.set_failure(CutMiddle(ToUtf8(why), kMaxFailureBytes));
  return done;
}

journal::RewardDone MatchReward(const RewardSpec& spec, std::string_view response) {
  return Value(Strip(response) == Strip(spec.answer) ? 1.0f : 0.0f);
}

sandbox::ExecuteRequest RewardRequest(const Task& task, const std::string& trajectory_id,
                                      std::string_view response) {
  std::string text = ToUtf8(response);
  sandbox::ExecuteRequest request;
  request.set_sandbox_id(task.reward.sandbox ? JudgeSandboxId(trajectory_id)
                                             : SandboxId(trajectory_id));
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
  return NoReward(result.outcome() == sandbox::OUTCOME_EXITED
                      ? fmt::format("the reward command exited with code {}, allowed: 0 or 1",
                                    result.exit_code())
                      : fmt::format("the reward command ended with {}: {}",
                                    sandbox::Outcome_Name(result.outcome()), result.message()));
}

std::string JudgeBody(const Task& task, const replay::TrajectoryState& state,
                      const std::string& messages_json, std::string_view response,
                      std::string_view status, std::string_view stop_reason) {
  const journal::TrajectoryStart& start = state.start;
  Json body = {{"id", RewardCallId(start.trajectory_id())},
               {"trajectory_id", start.trajectory_id()},
               {"job_id", start.job_id()},
               {"group", start.group()},
               {"sample", start.sample()},
               {"task", Json::parse(task.task_json)},
               {"metadata", Json::parse(task.metadata_json)},
               {"messages", Json::parse(messages_json)},
               {"response", ToUtf8(response)},
               {"token_ids", state.tokens},
               {"prompt_len", state.prompt_len()},
               {"status", status},
               {"stop_reason", stop_reason}};
  return body.dump(-1, ' ', false, Json::error_handler_t::replace);
}

journal::RewardDone ReadJudgement(int status, std::string_view body) {
  if (status != 200) return NoReward(fmt::format("the judge answered with status {}", status));
  auto json = ParseJson(body);
  if (!json.ok()) return NoReward(fmt::format("the judge's answer is {}", Message(json.status())));
  if (!json->is_object()) {
    std::string why = NoNumber(*json);
    return why.empty() ? Value(json->get<float>()) : NoReward("the judge's answer " + why);
  }
  auto reward = json->find("reward");
  if (reward == json->end()) return NoReward("the judge's answer has no \"reward\"");
  journal::RewardDone done;
  if (std::string why = NoNumber(*reward); why.empty()) {
    done = Value(reward->get<float>());
  } else {
    done = NoReward("the judge's reward " + why);
  }
  if (auto metadata = json->find("metadata"); metadata != json->end()) {
    std::string text = metadata->dump(-1, ' ', false, Json::error_handler_t::replace);
    if (text.size() > kMaxRewardMetadataBytes) {
      return NoReward(fmt::format("the judge's metadata has {} bytes, the most is {}", text.size(),
                                  kMaxRewardMetadataBytes));
    }
    done.set_metadata_json(std::move(text));
  }
  if (auto parts = json->find("components"); parts != json->end()) {
    if (!parts->is_object()) return NoReward("the judge's components are no object");
    for (const auto& [name, value] : parts->items()) {
      if (std::string why = NoNumber(value); !why.empty())
        return NoReward(fmt::format("the judge's component \"{}\" {}", name, why));
      (*done.mutable_components())[ToUtf8(name)] = value.get<float>();
    }
  }
  return done;
}

}  // namespace reprise::rollout
