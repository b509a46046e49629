#include "rollout/http/sglang_api.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <utility>
#include <vector>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "absl/strings/numbers.h"
#include "base/clock.h"
#include "engine/json.h"
#include "rollout/http/openai_format.h"
#include "rollout/http/openai_request.h"
#include "rollout/http/requests.h"
#include "rollout/text.h"

namespace reprise::rollout::http {
namespace {

using engine::JsonValue;
using Json = nlohmann::ordered_json;

std::string Dump(const Json& json) {
  return json.dump(-1, ' ', false, Json::error_handler_t::replace);
}

double Finite(float logprob) {
  constexpr double kLeast = -9999.0;
  return std::isfinite(logprob) ? static_cast<double>(logprob) : kLeast;
}

// Every event of a stream has the whole text and all ids so far, as SGLang's have.
class GenerateFormatter final : public Formatter {
 public:
  GenerateFormatter(const OpenAiRequest& request, bool batch, AnswerHead head,
                    const ServedModel& model)
      : request_(request),
        batch_(batch || request.n > 1),
        head_(std::move(head)),
        tokenizer_(&model.tokenizer()),
        choices_(request.prompts.size() * static_cast<size_t>(request.n)) {}

  void OnBegun(size_t choice, int64_t cached_tokens) override {
    choices_[choice].cached = cached_tokens;
  }
  std::string Begin() override { return ""; }

  std::string OnToken(size_t index, const TokenOut& out) override {
    Choice& choice = choices_[index];
    const engine::SampledToken& token = out.token;
    choice.ids.push_back(token.id);
    choice.weight_version = out.weight_version;
    if (!request_.skip_special_tokens || !tokenizer_->IsAddedToken(token.id))
      choice.text += out.text;
    if (request_.logprobs) {
      choice.logprobs.push_back(Entry(token.id, token.logprob, token.raw_logprob));
      Json top = Json::array();
      for (const engine::TokenLogprob& other : token.top)
        top.push_back(Entry(other.id, other.logprob, other.raw_logprob));
      choice.top.push_back(std::move(top));
    }
    return request_.stream ? Event(index) : "";
  }

  std::string OnFinish(size_t index, const FinishOut& finish) override {
    Choice& choice = choices_[index];
    choice.text += finish.text;
    if (finish.reason == "length") {
      choice.reason = {{"type", "length"}, {"length", choice.ids.size()}};
    } else if (finish.stop_text.has_value()) {
      choice.reason = {{"type", "stop"}, {"matched", *finish.stop_text}};
    } else {
      choice.reason = {{"type", "stop"}, {"matched", choice.ids.back()}};
    }
    return request_.stream ? Event(index) : "";
  }

  std::string End() override { return request_.stream ? "data: [DONE]\n\n" : ""; }
  std::string OnError(const absl::Status& why) override {
    return fmt::format("data: {}\n\n", OpenAiError(why).body);
  }
  web::Response Failed(const absl::Status& why) override { return OpenAiError(why); }

  web::Response Whole() override {
    Json body = Json::array();
    for (size_t i = 0; i < choices_.size(); ++i) body.push_back(Answer(i));
    if (!batch_) body = Json(body[0]);
    web::Response response = web::JsonResponse(200, Dump(body));
    response.headers = head_.headers;
    return response;
  }

 private:
  struct Choice {
    std::string text;
    std::vector<int32_t> ids;
    Json logprobs = Json::array(), top = Json::array();
    Json reason;
    int64_t cached = 0;
    uint64_t weight_version = 0;  // of the last token
  };

  // [log-probability, id, text]
  Json Entry(int32_t id, float logprob, float raw) const {
    const bool greedy = request_.spec.sampling.temperature == 0;
    Json entry = Json::array();
    entry.push_back(Finite(greedy ? raw : logprob));
    entry.push_back(id);
    entry.push_back(nullptr);
    return entry;
  }

  Json Answer(size_t index) const {
    const Choice& choice = choices_[index];
    const auto& prompt = request_.prompts[index / static_cast<size_t>(request_.n)];
    Json meta = {{"id", choices_.size() > 1 ? fmt::format("{}-{}", head_.id, index) : head_.id},
                 {"finish_reason", choice.reason},
                 {"prompt_tokens", prompt.size()},
                 {"completion_tokens", choice.ids.size()},
                 {"cached_tokens", choice.cached},
                 {"weight_version", std::to_string(choice.weight_version)}};
    if (request_.logprobs) {
      meta["input_token_logprobs"] = Json::array();
      meta["output_token_logprobs"] = choice.logprobs;
      if (request_.spec.sampling.top_logprobs > 0) meta["output_top_logprobs"] = choice.top;
    }
    meta["e2e_latency"] = static_cast<double>(began_.ElapsedMicros()) / 1e6;
    Json answer = {{"text", choice.text}, {"output_ids", choice.ids}, {"meta_info", meta}};
    if (request_.stream && batch_) answer["index"] = index;
    return answer;
  }
  std::string Event(size_t index) const { return fmt::format("data: {}\n\n", Dump(Answer(index))); }

  const OpenAiRequest request_;
  const bool batch_;
  const AnswerHead head_;
  const engine::Tokenizer* const tokenizer_;
  const base::Stopwatch began_;
  std::vector<Choice> choices_;
};

absl::Status Generate(const Surface& surface, const web::RequestPtr& http,
                      const web::Respond& respond) {
  auto batch = std::make_shared<bool>(false);
  return Serve(
      surface, http, respond, "gen",
      [batch](const engine::JsonValue& body, const ServedModel& model) {
        return ReadGenerateRequest(body, model, batch.get());
      },
      [batch](const OpenAiRequest& request, AnswerHead head, const ServedModel& model) {
        return std::make_unique<GenerateFormatter>(request, *batch, std::move(head), model);
      });
}

// As SGLang answers a change of weights.
web::Response Changed(const absl::Status& status, const std::string& message) {
  const Json body = {{"success", status.ok()},
                     {"message", status.ok() ? message : Message(status)},
                     {"num_paused_requests", 0}};
  return web::JsonResponse(status.ok() ? 200 : web::HttpStatus(status.code()), Dump(body));
}

// Loads a checkpoint directory as the next weight version of the first model that is served.
web::Response UpdateWeights(const Surface& surface, JobTable* jobs, const web::Request& request) {
  auto served = ModelOf(surface, "");
  if (!served.ok()) return Changed(served.status(), "");
  auto body = engine::ParseJson(request.body);
  if (!body.ok() || !body->is_object())
    return Changed(absl::InvalidArgumentError("the body is not a JSON object"), "");
  RequestFields fields(*body);
  const std::string path = fields.String("model_path", "");
  journal::WeightsRecord record;
  record.set_directory(path);
  const JsonValue* version = fields.Find("weight_version");
  uint64_t number = 0;
  if (version != nullptr && !absl::SimpleAtoi(version->text, &number))
    fields.Fail("weight_version", "a whole number is wanted, above every earlier one");
  record.set_version(number);
  if (!path.starts_with('/')) fields.Fail("model_path", "an absolute path is wanted");
  if (!fields.status().ok()) return Changed(fields.status(), "");
  auto update = jobs->LoadWeights((*served)->directory, std::move(record));
  return Changed(
      update.status(),
      update.ok() ? fmt::format("weight version {} is in force", update->record.version()) : "");
}

}  // namespace

void AddSglangRoutes(const Surface& surface, JobTable* jobs, web::Router* router) {
  router->Add(PoolRoute(surface, "POST", "/generate",
                        [surface](const web::RequestPtr& request, const web::Respond& respond) {
                          absl::Status status = Generate(surface, request, respond);
                          if (!status.ok()) respond(OpenAiError(status));
                        }));
  router->Add(PoolRoute(surface, "GET", "/get_model_info",
                        [surface](const web::RequestPtr&, const web::Respond& respond) {
                          auto served = ModelOf(surface, "");
                          if (!served.ok()) return respond(OpenAiError(served.status()));
                          const ServedModel& model = **served;
                          const uint64_t version = model.scheduler->weights().current().version();
                          const Json info = {{"model_path", model.directory},
                                             {"tokenizer_path", model.directory},
                                             {"is_generation", true},
                                             {"served_model_name", model.name},
                                             {"max_context_length", model.engine().max_context()},
                                             {"weight_version", std::to_string(version)}};
                          respond(web::JsonResponse(200, info.dump()));
                        }));
  router->Add(
      PoolRoute(surface, "POST", "/update_weights_from_disk",
                [surface, jobs](const web::RequestPtr& request, const web::Respond& respond) {
                  respond(UpdateWeights(surface, jobs, *request));
                }));
  for (const bool pause : {true, false}) {
    router->Add(PoolRoute(surface, "POST", pause ? "/pause_generation" : "/continue_generation",
                          [jobs, pause](const web::RequestPtr&, const web::Respond& respond) {
                            for (const auto& [directory, scheduler] : jobs->Schedulers())
                              pause ? scheduler->PauseAll() : scheduler->ContinueAll();
                            respond(Changed(absl::OkStatus(), pause ? "paused" : "continued"));
                          }));
  }
  // Whether it serves is no secret: load balancers ask without a token.
  web::Route health;
  health.method = "GET";
  health.pattern = "/health";
  health.handler = [](const web::RequestPtr&, const web::Respond& respond) {
    respond(web::Response());
  };
  router->Add(std::move(health));
}

}  // namespace reprise::rollout::http
