#include "rollout/http/trajectory_api.h"

#include <limits>
#include <utility>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "absl/strings/numbers.h"
#include "base/ids.h"
#include "base/status_macros.h"
#include "engine/json.h"
#include "rollout/http/harness.h"
#include "rollout/http/openai_format.h"
#include "rollout/http/request_fields.h"

namespace reprise::rollout::http {
namespace {

using engine::JsonValue;

constexpr size_t kComponentsMax = 256;

bool IsOneOf(const std::string& word, std::initializer_list<const char*> words) {
  for (const char* each : words) {
    if (word == each) return true;
  }
  return false;
}

absl::StatusOr<Harness::Ending> ReadEnding(const std::string& body) {
  auto json = engine::ParseJson(body);
  if (!json.ok() || !json->is_object())
    return absl::InvalidArgumentError("the body is not a JSON object");
  RequestFields fields(*json);
  Harness::Ending ending;
  constexpr double kMost = std::numeric_limits<float>::max();
  if (fields.Has("reward"))
    ending.reward = static_cast<float>(fields.Number("reward", -kMost, kMost, 0));
  ending.status = fields.String("status", "completed");
  if (!IsOneOf(ending.status, {"completed", "truncated", "aborted", "failed"}))
    fields.Fail("status", "completed, truncated, aborted or failed is wanted");
  if (const JsonValue* failure = fields.Find("failure")) {
    RequestFields inner(*failure);
    ending.failure_kind = inner.String("kind", "");
    ending.failure = inner.String("reason", "");
    if (!IsOneOf(ending.failure_kind, {"model", "tool", "env", "infra", "grader", "timeout"}))
      fields.Fail("failure", "its kind is one of model, tool, env, infra, grader, timeout");
  }
  if (const JsonValue* components = fields.Find("reward_components")) {
    if (!components->is_object() || components->members.size() > kComponentsMax)
      fields.Fail("reward_components",
                  fmt::format("an object of at most {} numbers is wanted", kComponentsMax));
    for (const auto& [name, value] : components->members) {
      float number = 0;
      if (value.kind != JsonValue::Kind::kNumber || !absl::SimpleAtof(value.text, &number))
        fields.Fail("reward_components", fmt::format("\"{}\" is not a number", name));
      ending.components[name] = number;
    }
  }
  RETURN_IF_ERROR(fields.status());
  return ending;
}

absl::Status Finish(const Surface& surface, const web::Request& request,
                    const web::Respond& respond) {
  std::string job(request.header("x-reprise-job"));
  if (job.empty()) job = kDefaultJob;
  RETURN_IF_ERROR(base::CheckId(job, "X-Reprise-Job"));
  ASSIGN_OR_RETURN(const Harness::Ending ending, ReadEnding(request.body));
  ASSIGN_OR_RETURN(const std::vector<std::string> ids,
                   surface.harness->Finish(job, request.params[0], ending));
  nlohmann::ordered_json answer = {{"id", request.params[0]},
                                   {"job", job},
                                   {"status", ending.status},
                                   {"reward", nullptr},
                                   {"records", ids}};
  if (ending.reward.has_value()) answer["reward"] = *ending.reward;
  respond(web::JsonResponse(200, answer.dump()));
  return absl::OkStatus();
}

}  // namespace

void AddTrajectoryRoutes(const Surface& surface, web::Router* router) {
  router->Add(PoolRoute(surface, "POST", "/v1/trajectories/{}/finish",
                        [surface](const web::RequestPtr& request, const web::Respond& respond) {
                          absl::Status status = Finish(surface, *request, respond);
                          if (!status.ok()) respond(OpenAiError(status));
                        }));
}

}  // namespace reprise::rollout::http
