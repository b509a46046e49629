// OpenAI's answers as text: chat completions and completions, whole and as server-sent events,
// with vLLM's fields for token ids (prompt_token_ids, token_ids). docs/openai.md lists the fields.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "engine/tokenizer.h"
#include "rollout/http/openai_request.h"
#include "rollout/http/reply.h"

namespace reprise::rollout::http {

// What an answer says of itself.
struct AnswerHead {
  std::string id;  // "chatcmpl-..."
  int64_t created_s = 0;
  std::string model;
  std::vector<web::Header> headers;  // of the response
};

// `tokenizer` outlives it.
std::unique_ptr<Formatter> MakeOpenAiFormatter(const OpenAiRequest& request, AnswerHead head,
                                               const engine::Tokenizer* tokenizer);

// {"error": {...}} in OpenAI's form with the HTTP status that fits; 401, 404 and 429 as its clients
// know them.
web::Response OpenAiError(const absl::Status& status);

}  // namespace reprise::rollout::http
