#include "rollout/http/openai_request.h"

#include <algorithm>
#include <limits>
#include <utility>

#include <fmt/format.h>

#include "absl/strings/numbers.h"
#include "base/status_macros.h"
#include "engine/chat_text.h"
#include "engine/sampler.h"
#include "rollout/http/guide.h"
#include "rollout/text.h"

namespace reprise::rollout::http {
namespace {

using engine::JsonValue;
using engine::ThinkingMode;

constexpr int64_t kTokensMax = 1ll << 31;
constexpr int64_t kCompletionTopLogprobs = 1024;
constexpr size_t kPromptsMax = 128;

void ReadLogitBias(const ServedModel& model, RequestFields* fields, GenerationSpec* spec) {
  const JsonValue* bias = fields->Find("logit_bias");
  if (bias == nullptr) return;
  if (!bias->is_object())
    return fields->Fail("logit_bias", "an object from token id to bias is wanted");
  for (const auto& [key, value] : bias->members) {
    int32_t id = 0;
    float amount = 0;
    if (!absl::SimpleAtoi(key, &id) || id < 0 || id >= model.engine().vocab_size())
      return fields->Fail("logit_bias", fmt::format("\"{}\" is no token id", key));
    if (value.kind != JsonValue::Kind::kNumber || !absl::SimpleAtof(value.text, &amount) ||
        !(amount >= -engine::kLogitBiasMax && amount <= engine::kLogitBiasMax)) {
      return fields->Fail("logit_bias", fmt::format("the bias of {} is no number from {} to {}", id,
                                                    -engine::kLogitBiasMax, engine::kLogitBiasMax));
    }
    spec->sampling.logit_bias.emplace_back(id, amount);
  }
}

// What this engine cannot do is refused, never left out in silence.
void RefuseUnsupported(bool chat, RequestFields* fields) {
  for (const char* field :
       {"guided_regex", "guided_choice", "guided_grammar", "structured_outputs"}) {
    if (fields->Has(field)) fields->Fail(field, "not served: guided_json is");
  }
  if (fields->Bool("use_beam_search", false)) fields->Fail("use_beam_search", "not served");
  if (fields->Has("suffix")) fields->Fail("suffix", "not served");
  if (fields->Has("prompt_logprobs")) fields->Fail("prompt_logprobs", "not served");
  if (fields->Int("best_of", 1, 1).has_value() && chat) fields->Fail("best_of", "not served");
}

// DeepSeek's `thinking`, vLLM's `chat_template_kwargs`, OpenAI's `reasoning_effort`.
void ReadThinking(RequestFields* fields, engine::ChatOptions* options) {
  auto choose = [&](bool on) {
    options->mode = on ? ThinkingMode::kThinking : ThinkingMode::kChat;
  };
  if (const JsonValue* thinking = fields->Find("thinking")) {
    const JsonValue* type = thinking->Find("type");
    if (type == nullptr || (type->text != "enabled" && type->text != "disabled"))
      return fields->Fail("thinking",
                          "{\"type\": \"enabled\"} or {\"type\": \"disabled\"} is wanted");
    choose(type->text == "enabled");
  }
  if (const JsonValue* kwargs = fields->Find("chat_template_kwargs")) {
    for (const char* name : {"thinking", "enable_thinking"}) {
      const JsonValue* on = kwargs->Find(name);
      if (on == nullptr) continue;
      if (on->kind != JsonValue::Kind::kBool)
        return fields->Fail(fmt::format("chat_template_kwargs.{}", name),
                            "true or false is wanted");
      choose(on->boolean);
    }
  }
  const std::string effort = fields->String("reasoning_effort", "");
  if (effort.empty()) return;
  if (effort == "none") {
    choose(false);
  } else if (effort == "max" || effort == "xhigh") {
    choose(true);
    options->effort = engine::Effort::kMax;
  } else if (effort == "minimal" || effort == "low" || effort == "medium" || effort == "high") {
    choose(true);
    options->effort = engine::Effort::kHigh;
  } else {
    fields->Fail("reasoning_effort", "none, minimal, low, medium, high, xhigh or max is wanted");
  }
}

void ReadMasks(const std::optional<Guide>& guide, ThinkingMode mode, const ServedModel& model,
               RequestFields* fields, OpenAiRequest* request) {
  if (!guide.has_value() || !fields->status().ok()) return;
  auto masks = MasksOf(*guide, mode, model);
  if (!masks.ok()) return fields->Fail(masks.status());
  request->spec.masks = *std::move(masks);
}

void ReadChat(const ServedModel& model, ThinkingMode default_mode, RequestFields* fields,
              OpenAiRequest* request) {
  engine::ChatOptions options;
  options.mode = default_mode;
  ReadThinking(fields, &options);
  const JsonValue* messages = fields->Find("messages");
  if (messages == nullptr || !messages->is_array() || messages->items.empty())
    return fields->Fail("messages", "an array with at least one message is wanted");
  const JsonValue* tools = fields->Find("tools");
  const JsonValue* choice = fields->Find("tool_choice");
  const bool none = choice != nullptr && choice->text == "none";
  if (tools != nullptr && !tools->is_array()) return fields->Fail("tools", "an array is wanted");
  if (tools != nullptr && !tools->items.empty() && !none) options.tools_json = DumpJson(*tools);
  const std::optional<Guide> guide = ReadGuide(fields);
  auto pieces = engine::EncodeChat(
      DumpJson(guide.has_value() ? WithSchema(*messages, *guide) : *messages), options);
  if (!pieces.ok()) return fields->Fail("messages", Message(pieces.status()));
  // After a quick instruction nothing is thought, whatever the mode.
  const bool thinks = engine::JoinPieces(*pieces).ends_with(engine::kThinkOpen);
  ReadMasks(guide, thinks ? ThinkingMode::kThinking : ThinkingMode::kChat, model, fields, request);
  request->mode = options.mode;
  request->pieces = *std::move(pieces);
  request->prompts.push_back(model.tokenizer().Encode(request->pieces));
  if (options.mode == ThinkingMode::kThinking) request->spec.stop_after_id = model.think_close_id;
  request->spec.stop_before_id = model.dsml_id;
  request->logprobs = fields->Bool("logprobs", false);
  const int64_t top = fields->Int("top_logprobs", 0, kChatTopLogprobs, 0);
  if (top > 0 && !request->logprobs) fields->Fail("top_logprobs", "it needs \"logprobs\": true");
  request->spec.sampling.top_logprobs = static_cast<int32_t>(top);
}

// "text", ["text", ...], [ids], [[ids], ...]
void ReadPrompts(const ServedModel& model, RequestFields* fields, OpenAiRequest* request) {
  const JsonValue* prompt = fields->Find("prompt");
  const std::string wanted = "a string, token ids, or an array of either is wanted";
  if (prompt == nullptr) return fields->Fail("prompt", wanted);
  const bool special = fields->Bool("add_special_tokens", true);
  auto encode = [&](const std::string& text) {
    const std::optional<int32_t> bos =
        special ? model.tokenizer().AddedTokenId(engine::kBos) : std::nullopt;
    std::vector<int32_t> ids = model.tokenizer().Encode(text);
    const bool add = bos.has_value() && (ids.empty() || ids[0] != *bos);
    if (add) ids.insert(ids.begin(), *bos);
    request->pieces = {{fmt::format("{}{}", add ? engine::kBos : "", text), true}};
    request->prompts.push_back(std::move(ids));
  };
  auto take = [&](const JsonValue& ids) {
    JsonValue object;
    object.kind = JsonValue::Kind::kObject;
    object.members.emplace_back("prompt", ids);
    RequestFields one(object);
    request->prompts.push_back(one.Ids("prompt", model.engine().vocab_size() - 1));
    if (!one.status().ok())
      fields->Fail("prompt", fmt::format("token ids are whole numbers from 0 to {}",
                                         model.engine().vocab_size() - 1));
  };
  if (prompt->is_string()) return encode(prompt->text);
  if (!prompt->is_array() || prompt->items.empty()) return fields->Fail("prompt", wanted);
  if (prompt->items[0].kind == JsonValue::Kind::kNumber) return take(*prompt);
  if (prompt->items.size() > kPromptsMax)
    return fields->Fail("prompt", fmt::format("at most {} prompts are allowed", kPromptsMax));
  for (const JsonValue& item : prompt->items) {
    if (item.is_string()) {
      encode(item.text);
    } else if (item.is_array()) {
      take(item);
    } else {
      return fields->Fail("prompt", wanted);
    }
  }
}

void ReadCompletion(const ServedModel& model, RequestFields* fields, OpenAiRequest* request) {
  ReadPrompts(model, fields, request);
  ReadMasks(ReadGuide(fields), ThinkingMode::kChat, model, fields, request);
  request->skip_special_tokens = fields->Bool("skip_special_tokens", true);
  const std::optional<int64_t> logprobs = fields->Int("logprobs", 0, kCompletionTopLogprobs);
  request->logprobs = logprobs.has_value();
  request->spec.sampling.top_logprobs = static_cast<int32_t>(logprobs.value_or(0));
  request->echo = fields->Bool("echo", false);
  if (request->echo && request->logprobs)
    fields->Fail("echo", "not served with logprobs: a prompt's log-probabilities are not computed");
}

}  // namespace

void ReadSampling(const ServedModel& model, RequestFields* fields, GenerationSpec* spec) {
  engine::SamplingParams& sampling = spec->sampling;
  auto number = [&](const char* field, double min, double max, double fallback) {
    return static_cast<float>(fields->Number(field, min, max, fallback));
  };
  sampling.temperature = number("temperature", 0, engine::kTemperatureMax, 1);
  sampling.top_p = number("top_p", 0, 1, 1);
  if (sampling.top_p <= 0) fields->Fail("top_p", "a number above 0, at most 1, is wanted");
  const int64_t top_k =
      fields->Int("top_k", -1, std::numeric_limits<int32_t>::max(), 0);  // -1: all
  sampling.top_k = static_cast<int32_t>(std::max<int64_t>(top_k, 0));
  sampling.min_p = number("min_p", 0, 1, 0);
  sampling.repetition_penalty = number("repetition_penalty", 0, engine::kPenaltyMax, 1);
  if (sampling.repetition_penalty <= 0)
    fields->Fail("repetition_penalty", "a number above 0 is wanted");
  sampling.frequency_penalty = number("frequency_penalty", -2, 2, 0);
  sampling.presence_penalty = number("presence_penalty", -2, 2, 0);
  sampling.stop_ids = fields->Ids("stop_token_ids", model.engine().vocab_size() - 1);
  ReadLogitBias(model, fields, spec);
  spec->stop = fields->Strings("stop", kStopStringsMax);
  spec->ignore_eos = fields->Bool("ignore_eos", false);
}

absl::Status Complete(const ServedModel& model, const std::vector<int32_t>& prompt,
                      std::string_view prompt_field, GenerationSpec* spec) {
  const int64_t room = model.engine().max_context() - static_cast<int64_t>(prompt.size());
  if (prompt.empty()) return BadField(prompt_field, "there is not one token in it");
  if (room < 1) {
    return BadField(prompt_field, fmt::format("it has {} tokens, the context has room for {}",
                                              prompt.size(), model.engine().max_context() - 1));
  }
  if (spec->max_tokens == 0) spec->max_tokens = room;
  if (spec->max_tokens > room) {
    return BadField(
        "max_tokens",
        fmt::format("{} and the {} tokens of the prompt are more than the context of {}",
                    spec->max_tokens, prompt.size(), model.engine().max_context()));
  }
  if (spec->min_tokens > spec->max_tokens)
    return BadField("min_tokens", "it is more than max_tokens");
  absl::Status checked = engine::CheckSampling(spec->sampling, model.engine().vocab_size());
  return checked.ok() ? checked : BadField("sampling", Message(checked));
}

absl::StatusOr<OpenAiRequest> ReadOpenAiRequest(const JsonValue& body, bool chat,
                                                const ServedModel& model,
                                                ThinkingMode default_mode) {
  RequestFields fields(body);
  OpenAiRequest request;
  request.chat = chat;
  ReadSampling(model, &fields, &request.spec);
  RefuseUnsupported(chat, &fields);
  constexpr int64_t kCompletionTokens = 16;  // OpenAI's default there
  const std::optional<int64_t> most = fields.Int("max_tokens", 1, kTokensMax);
  request.spec.max_tokens =
      chat ? fields.Int("max_completion_tokens", 1, kTokensMax, most.value_or(0))
           : most.value_or(0);
  request.spec.min_tokens = fields.Int("min_tokens", 0, kTokensMax, 0);
  request.spec.include_stop = fields.Bool("include_stop_str_in_output", false);
  if (const auto seed = fields.Int("seed", std::numeric_limits<int64_t>::min(),
                                   std::numeric_limits<int64_t>::max())) {
    request.seed = static_cast<uint64_t>(*seed);
  }
  request.n = fields.Int("n", 1, kChoicesMax, 1);
  request.stream = fields.Bool("stream", false);
  if (const JsonValue* options = fields.Find("stream_options")) {
    if (!request.stream) fields.Fail("stream_options", "it needs \"stream\": true");
    request.include_usage = RequestFields(*options).Bool("include_usage", false);
  }
  request.return_token_ids = fields.Bool("return_token_ids", false);
  request.tokens_as_ids = fields.Bool("return_tokens_as_token_ids", false);
  if (fields.status().ok()) {
    if (chat) {
      ReadChat(model, default_mode, &fields, &request);
    } else {
      ReadCompletion(model, &fields, &request);
    }
  }
  RETURN_IF_ERROR(fields.status());
  if (static_cast<int64_t>(request.prompts.size()) * request.n > kChoicesMax)
    return BadField("n", fmt::format("n times the prompts is more than {}", kChoicesMax));
  // The longest prompt has the least room.
  const std::vector<int32_t>* longest = &request.prompts[0];
  for (const auto& prompt : request.prompts) {
    RETURN_IF_ERROR(prompt.empty() ? BadField(chat ? "messages" : "prompt", "it is empty")
                                   : absl::OkStatus());
    if (prompt.size() > longest->size()) longest = &prompt;
  }
  RETURN_IF_ERROR(Complete(model, *longest, chat ? "messages" : "prompt", &request.spec));
  if (!chat && !most.has_value())
    request.spec.max_tokens = std::min(request.spec.max_tokens, kCompletionTokens);
  return request;
}

}  // namespace reprise::rollout::http
