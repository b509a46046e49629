// The body of SGLang's /generate.
#include <algorithm>
#include <limits>
#include <utility>

#include <fmt/format.h>

#include "base/status_macros.h"
#include "engine/chat_text.h"
#include "engine/sampler.h"
#include "rollout/http/guide.h"
#include "rollout/http/openai_request.h"

namespace reprise::rollout::http {
namespace {

using engine::JsonValue;

constexpr int64_t kNewTokens = 128;  // SGLang's default
constexpr int64_t kTokensMax = 1ll << 31;

// `field` of `body` as prompts: one value, or an array of them.
void ReadPrompts(const JsonValue& body, const ServedModel& model, RequestFields* fields,
                 OpenAiRequest* request, bool* batch) {
  const JsonValue* text = fields->Find("text");
  const JsonValue* ids = fields->Find("input_ids");
  if ((text == nullptr) == (ids == nullptr))
    return fields->Fail("text", "one of text and input_ids is wanted");
  if (text != nullptr) {
    *batch = text->is_array();
    for (const std::string& one : fields->Strings("text", static_cast<size_t>(kChoicesMax))) {
      request->pieces = {{one, true}};
      request->prompts.push_back(model.tokenizer().Encode(one));
    }
    return;
  }
  *batch = ids->is_array() && !ids->items.empty() && ids->items[0].is_array();
  const int64_t most = model.engine().vocab_size() - 1;
  if (!*batch) {
    request->prompts.push_back(fields->Ids("input_ids", most));
    return;
  }
  for (const JsonValue& item : ids->items) {
    JsonValue object;
    object.kind = JsonValue::Kind::kObject;
    object.members.emplace_back("input_ids", item);
    RequestFields one(object);
    request->prompts.push_back(one.Ids("input_ids", most));
    if (!one.status().ok())
      fields->Fail("input_ids", fmt::format("token ids are whole numbers from 0 to {}", most));
  }
}

}  // namespace

absl::StatusOr<OpenAiRequest> ReadGenerateRequest(const JsonValue& body, const ServedModel& model,
                                                  bool* batch) {
  RequestFields fields(body);
  OpenAiRequest request;
  ReadPrompts(body, model, &fields, &request, batch);
  request.stream = fields.Bool("stream", false);
  request.logprobs = fields.Bool("return_logprob", false);
  if (fields.Int("logprob_start_len", -1, kTokensMax, -1) != -1 && request.logprobs)
    fields.Fail("logprob_start_len", "only -1: log-probabilities of a prompt are not computed");
  request.spec.sampling.top_logprobs =
      static_cast<int32_t>(fields.Int("top_logprobs_num", 0, engine::kTopLogprobsMax, 0));
  const JsonValue* params = fields.Find("sampling_params");
  if (params != nullptr && !params->is_object())
    fields.Fail("sampling_params", "an object is wanted: every prompt is sampled the same way");
  RETURN_IF_ERROR(fields.status());
  JsonValue empty;
  empty.kind = JsonValue::Kind::kObject;
  RequestFields sampling(params != nullptr ? *params : empty);
  const int32_t top = request.spec.sampling.top_logprobs;
  ReadSampling(model, &sampling, &request.spec);
  request.spec.sampling.top_logprobs = top;
  request.spec.max_tokens = sampling.Int("max_new_tokens", 1, kTokensMax, 0);
  const bool bounded = request.spec.max_tokens > 0;
  request.spec.min_tokens = sampling.Int("min_new_tokens", 0, kTokensMax, 0);
  request.spec.include_stop = sampling.Bool("no_stop_trim", false);
  request.skip_special_tokens = sampling.Bool("skip_special_tokens", true);
  request.n = sampling.Int("n", 1, kChoicesMax, 1);
  if (const auto seed = sampling.Int("sampling_seed", 0, std::numeric_limits<int64_t>::max()))
    request.seed = static_cast<uint64_t>(*seed);
  for (const char* field : {"regex", "ebnf", "structural_tag"}) {
    if (sampling.Has(field)) sampling.Fail(field, "not served: json_schema is");
  }
  const std::optional<Guide> guide = ReadSchemaGuide(&sampling, "json_schema");
  if (guide.has_value() && request.spec.ignore_eos)
    sampling.Fail("ignore_eos", "not served with json_schema: the form ends");
  RETURN_IF_ERROR(sampling.status());
  if (guide.has_value()) {
    ASSIGN_OR_RETURN(request.spec.masks, MasksOf(*guide, engine::ThinkingMode::kChat, model));
  }
  if (request.prompts.empty() ||
      static_cast<int64_t>(request.prompts.size()) * request.n > kChoicesMax)
    return BadField("n", fmt::format("from 1 to {} answers are served", kChoicesMax));
  const char* prompt_field = fields.Has("text") ? "text" : "input_ids";
  const auto longest =
      std::max_element(request.prompts.begin(), request.prompts.end(),
                       [](const auto& a, const auto& b) { return a.size() < b.size(); });
  for (const auto& prompt : request.prompts) {
    if (prompt.empty()) return BadField(prompt_field, "there is not one token in it");
  }
  RETURN_IF_ERROR(Complete(model, *longest, prompt_field, &request.spec));
  if (!bounded) request.spec.max_tokens = std::min(request.spec.max_tokens, kNewTokens);
  return request;
}

}  // namespace reprise::rollout::http
