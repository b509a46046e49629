// The body of an OpenAI request, read and checked: what is sampled from what, and how it is
// answered. Names beyond OpenAI's are vLLM's: top_k, min_p, repetition_penalty, stop_token_ids,
// min_tokens, ignore_eos, include_stop_str_in_output, return_token_ids,
// return_tokens_as_token_ids, skip_special_tokens.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/chat.h"
#include "rollout/http/generation.h"
#include "rollout/http/request_fields.h"
#include "rollout/http/served_model.h"

namespace reprise::rollout::http {

inline constexpr int64_t kChoicesMax = 128;      // answers to one request
inline constexpr int64_t kChatTopLogprobs = 20;  // as OpenAI allows
inline constexpr size_t kStopStringsMax = 16;

struct OpenAiRequest {
  bool chat = false;
  std::vector<std::vector<int32_t>> prompts;  // one, or a batch of completions
  std::vector<engine::PromptPiece> pieces;    // of a prompt that came as text; else empty
  GenerationSpec spec;                        // without the prompt
  std::optional<uint64_t> seed;
  int64_t n = 1;
  bool stream = false, include_usage = false;
  bool logprobs = false;
  bool return_token_ids = false, tokens_as_ids = false;
  bool echo = false;                 // completions: the answer's text begins with the prompt's
  bool skip_special_tokens = false;  // completions: text without that of added tokens
  engine::ThinkingMode mode = engine::ThinkingMode::kChat;
};

// Sampling parameters and ends that /v1/chat/completions, /v1/completions and /generate have in
// common, into `spec`.
void ReadSampling(const ServedModel& model, RequestFields* fields, GenerationSpec* spec);
// Checks what only the whole can tell: sampling parameters against the engine, the prompt against
// the context. A max_tokens of 0 becomes what the context has room for. `prompt_field` names the
// prompt in errors.
absl::Status Complete(const ServedModel& model, const std::vector<int32_t>& prompt,
                      std::string_view prompt_field, GenerationSpec* spec);

// SGLang's /generate, read into the same form. `*batch`: it asked with arrays, and is answered with
// one.
absl::StatusOr<OpenAiRequest> ReadGenerateRequest(const engine::JsonValue& body,
                                                  const ServedModel& model, bool* batch);

// INVALID_ARGUMENT with FieldOf. `default_mode`: of requests that do not choose.
absl::StatusOr<OpenAiRequest> ReadOpenAiRequest(const engine::JsonValue& body, bool chat,
                                                const ServedModel& model,
                                                engine::ThinkingMode default_mode);

}  // namespace reprise::rollout::http
