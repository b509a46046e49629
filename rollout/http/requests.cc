#include "rollout/http/requests.h"

#include <algorithm>
#include <cstdlib>
#include <utility>

#include <fmt/format.h>

#include "absl/cleanup/cleanup.h"
#include "base/clock.h"
#include "base/ids.h"
#include "base/status_macros.h"
#include "engine/json.h"
#include "rollout/http/harness.h"
#include "rollout/identity.h"

namespace reprise::rollout::http {
namespace {

constexpr int64_t kMicros = 1'000'000;

uint64_t RandomSeed() { return std::strtoull(base::RandomHex(8).c_str(), nullptr, 16); }

// Answers to one prompt are drawn apart, and the first as if it were alone.
std::vector<GenerationSpec> SpecsOf(const OpenAiRequest& request) {
  const uint64_t seed = request.seed.has_value() ? *request.seed : RandomSeed();
  std::vector<GenerationSpec> specs;
  for (size_t prompt = 0; prompt < request.prompts.size(); ++prompt) {
    for (int64_t i = 0; i < request.n; ++i) {
      GenerationSpec spec = request.spec;
      spec.prompt = request.prompts[prompt];
      const auto choice = static_cast<uint32_t>(specs.size());
      spec.sampling.seed = choice == 0 ? seed : TrajectorySeed(seed, "choice", choice);
      specs.push_back(std::move(spec));
    }
  }
  return specs;
}

// The request in its trajectory: its prompt and seed become those of the turn.
absl::StatusOr<HarnessTurn> TakeTurn(const Surface& surface, const HarnessCall& call,
                                     const ServedModel& model, const std::string& answer_id,
                                     OpenAiRequest* request) {
  if (request->n != 1 || request->prompts.size() != 1)
    return BadField("n", "a request of a trajectory has one answer");
  ASSIGN_OR_RETURN(HarnessTurn turn, surface.harness->Begin(call, model, *request, answer_id));
  request->prompts[0] = turn.prompt;
  request->seed = turn.seed;
  const int64_t room = model.engine().max_context() - static_cast<int64_t>(turn.prompt.size());
  if (room < 1) return BadField("messages", "the trajectory has filled the context");
  request->spec.max_tokens = std::min(request->spec.max_tokens, room);
  return turn;
}

}  // namespace

absl::Status Serve(const Surface& surface, const web::RequestPtr& http, const web::Respond& respond,
                   std::string_view prefix, const ReadRequest& read, const MakeFormatter& format) {
  ASSIGN_OR_RETURN(const std::optional<HarnessCall> call, ReadHarnessCall(*http));
  ASSIGN_OR_RETURN(const uint64_t place, surface.admission->Enter());
  absl::Cleanup leave = [&] { surface.admission->Leave(place); };
  auto body = engine::ParseJson(http->body);
  if (!body.ok() || !body->is_object())
    return absl::InvalidArgumentError("the body is not a JSON object");
  RequestFields fields(*body);
  const std::string name = fields.String("model", "");
  RETURN_IF_ERROR(fields.status());
  ASSIGN_OR_RETURN(const ServedModel* model, ModelOf(surface, name));
  ASSIGN_OR_RETURN(OpenAiRequest request, read(*body, *model));
  AnswerHead head;
  head.id = fmt::format("{}-{}", prefix, base::RandomHex(12));
  head.created_s = base::WallMicros() / kMicros;
  head.model = model->name;
  std::optional<HarnessTurn> turn;
  if (call.has_value()) {
    ASSIGN_OR_RETURN(turn, TakeTurn(surface, *call, *model, head.id, &request));
    head.id = turn->answer_id;
    head.created_s = turn->created_us / kMicros;
    head.headers = {{"X-Reprise-Trajectory-Id", turn->trajectory_id},
                    {"X-Reprise-Replayed", turn->replayed ? "true" : "false"}};
  }
  std::vector<web::Header> headers = head.headers;
  ASSIGN_OR_RETURN(Started started,
                   MakeStarted(surface, *model, place, format(request, std::move(head), *model),
                               SpecsOf(request), turn.has_value() ? &*turn : nullptr));
  std::move(leave).Cancel();
  Run(*model, http, respond, started, request.stream, std::move(headers));
  return absl::OkStatus();
}

}  // namespace reprise::rollout::http
