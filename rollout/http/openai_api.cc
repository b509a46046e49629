#include "rollout/http/openai_api.h"

#include <memory>
#include <utility>

#include <nlohmann/json.hpp>

#include "rollout/http/openai_format.h"
#include "rollout/http/openai_request.h"
#include "rollout/http/requests.h"

namespace reprise::rollout::http {
namespace {

nlohmann::ordered_json Describe(const ServedModel& model) {
  return {{"id", model.name},          {"object", "model"},
          {"created", model.loaded_s}, {"owned_by", "reprise"},
          {"root", model.directory},   {"max_model_len", model.engine().max_context()}};
}

absl::Status Answer(const Surface& surface, bool chat, const web::RequestPtr& http,
                    const web::Respond& respond) {
  return Serve(
      surface, http, respond, chat ? "chatcmpl" : "cmpl",
      [&](const engine::JsonValue& body, const ServedModel& model) {
        return ReadOpenAiRequest(body, chat, model, surface.default_mode);
      },
      [](const OpenAiRequest& request, AnswerHead head, const ServedModel& model) {
        return MakeOpenAiFormatter(request, std::move(head), &model.tokenizer());
      });
}

}  // namespace

void AddOpenAiRoutes(const Surface& surface, web::Router* router) {
  for (const bool chat : {true, false}) {
    router->Add(
        PoolRoute(surface, "POST", chat ? "/v1/chat/completions" : "/v1/completions",
                  [surface, chat](const web::RequestPtr& request, const web::Respond& respond) {
                    absl::Status status = Answer(surface, chat, request, respond);
                    if (!status.ok()) respond(OpenAiError(status));
                  }));
  }
  router->Add(PoolRoute(surface, "GET", "/v1/models",
                        [surface](const web::RequestPtr&, const web::Respond& respond) {
                          nlohmann::ordered_json list = {{"object", "list"},
                                                         {"data", nlohmann::ordered_json::array()}};
                          for (const ServedModel& model : *surface.models)
                            list["data"].push_back(Describe(model));
                          respond(web::JsonResponse(200, list.dump()));
                        }));
  router->Add(PoolRoute(surface, "GET", "/v1/models/{}",
                        [surface](const web::RequestPtr& request, const web::Respond& respond) {
                          auto model = ModelOf(surface, request->params[0]);
                          if (!model.ok()) return respond(OpenAiError(model.status()));
                          respond(web::JsonResponse(200, Describe(**model).dump()));
                        }));
}

}  // namespace reprise::rollout::http
