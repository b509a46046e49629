#include "rollout/http/openai_format.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "engine/chat.h"
#include "rollout/http/turn_stream.h"
#include "rollout/text.h"

namespace reprise::rollout::http {
namespace {

using Json = nlohmann::ordered_json;

std::string Dump(const Json& json) {
  return json.dump(-1, ' ', false, Json::error_handler_t::replace);
}
std::string Event(const Json& json) { return fmt::format("data: {}\n\n", Dump(json)); }

// JSON has no infinities: a token that was cut off has the least that OpenAI's clients expect.
double Finite(float logprob) {
  constexpr double kLeast = -9999.0;
  return std::isfinite(logprob) ? static_cast<double>(logprob) : kLeast;
}

// The reported log-probability is that of the distribution which the token was drawn from; of a
// greedy choice, where that is always certain, it is the model's.
class Logprobs {
 public:
  Logprobs(const engine::Tokenizer* tokenizer, bool greedy, bool as_ids, size_t top)
      : tokenizer_(tokenizer), greedy_(greedy), as_ids_(as_ids), top_(top) {}

  std::string Name(int32_t id) const {
    return as_ids_ ? fmt::format("token_id:{}", id) : ToUtf8(tokenizer_->TokenBytes(id));
  }
  double Of(const engine::SampledToken& token) const {
    return Finite(greedy_ ? token.raw_logprob : token.logprob);
  }
  double Of(const engine::TokenLogprob& token) const {
    return Finite(greedy_ ? token.raw_logprob : token.logprob);
  }
  Json Chat(const engine::SampledToken& token) const {
    Json entry = One(token.id, Of(token));
    entry["top_logprobs"] = Json::array();
    for (size_t i = 0; i < std::min(top_, token.top.size()); ++i)
      entry["top_logprobs"].push_back(One(token.top[i].id, Of(token.top[i])));
    return entry;
  }

 private:
  Json One(int32_t id, double logprob) const {
    Json bytes = Json::array();
    for (const char c : tokenizer_->TokenBytes(id)) bytes.push_back(static_cast<unsigned char>(c));
    return {{"token", Name(id)}, {"logprob", logprob}, {"bytes", std::move(bytes)}};
  }

  const engine::Tokenizer* tokenizer_;
  bool greedy_, as_ids_;
  size_t top_;
};

class OpenAiFormatter : public Formatter {
 public:
  OpenAiFormatter(const OpenAiRequest& request, AnswerHead head, const engine::Tokenizer* tokenizer)
      : request_(request),
        head_(std::move(head)),
        tokenizer_(tokenizer),
        logprobs_(tokenizer, request.spec.sampling.temperature == 0, request.tokens_as_ids,
                  static_cast<size_t>(request.spec.sampling.top_logprobs)) {}

  void OnBegun(size_t choice, int64_t cached_tokens) override {
    // Answers to one prompt share it.
    if (choice % static_cast<size_t>(request_.n) == 0) cached_ += cached_tokens;
  }
  std::string OnError(const absl::Status& why) override {
    return fmt::format("data: {}\n\n", OpenAiError(why).body);
  }
  web::Response Failed(const absl::Status& why) override { return OpenAiError(why); }

 protected:
  Json Head(const char* object) const {
    return {
        {"id", head_.id}, {"object", object}, {"created", head_.created_s}, {"model", head_.model}};
  }
  Json Usage() const {
    size_t prompt = 0;
    for (const auto& ids : request_.prompts) prompt += ids.size();
    return {{"prompt_tokens", prompt},
            {"completion_tokens", completion_},
            {"total_tokens", prompt + completion_},
            {"prompt_tokens_details", {{"cached_tokens", cached_}}},
            {"completion_tokens_details", {{"reasoning_tokens", reasoning_}}}};
  }
  web::Response Finished(const Json& body) const {
    web::Response response = web::JsonResponse(200, Dump(body));
    response.headers = head_.headers;
    return response;
  }
  std::string LastEvents(const char* object) const {
    std::string events;
    if (request_.include_usage) {
      Json chunk = Head(object);
      chunk["choices"] = Json::array();
      chunk["usage"] = Usage();
      events = Event(chunk);
    }
    return events + "data: [DONE]\n\n";
  }
  static Json StopReason(const FinishOut& finish) {
    if (finish.stop_text.has_value()) return *finish.stop_text;
    if (finish.stop_id.has_value()) return *finish.stop_id;
    return nullptr;
  }

  const OpenAiRequest request_;
  const AnswerHead head_;
  const engine::Tokenizer* const tokenizer_;
  const Logprobs logprobs_;
  int64_t cached_ = 0;
  size_t completion_ = 0, reasoning_ = 0;
};

// ---- /v1/chat/completions

class ChatFormatter final : public OpenAiFormatter {
 public:
  ChatFormatter(const OpenAiRequest& request, AnswerHead head, const engine::Tokenizer* tokenizer)
      : OpenAiFormatter(request, std::move(head), tokenizer) {
    for (int64_t i = 0; i < request.n; ++i) choices_.emplace_back(request.mode);
  }

  std::string Begin() override {
    std::string events;
    for (size_t i = 0; i < choices_.size(); ++i) {
      Json chunk = Chunk(i, {{"role", "assistant"}, {"content", ""}}, nullptr);
      if (request_.return_token_ids && i == 0) chunk["prompt_token_ids"] = request_.prompts[0];
      events += Event(chunk);
    }
    return events;
  }

  std::string OnToken(size_t index, const TokenOut& token) override {
    Choice& choice = choices_[index];
    ++completion_;
    if (choice.in_reasoning) ++reasoning_;
    choice.ids.push_back(token.token.id);
    if (request_.logprobs) choice.logprobs.push_back(logprobs_.Chat(token.token));
    choice.text += token.text;
    std::vector<TurnDelta> deltas = choice.turn.Push(token.text);
    std::string events;
    for (TurnDelta& delta : deltas) events += Deltas(index, std::move(delta));
    // A token without text still has an id and a log-probability.
    if (request_.stream && (request_.return_token_ids || request_.logprobs) &&
        choice.unsent < choice.ids.size())
      events += Event(WithTokens(index, Chunk(index, Json::object(), nullptr)));
    choice.in_reasoning = choice.in_reasoning && choice.text.find("</think>") == std::string::npos;
    return request_.stream ? events : "";
  }

  std::string OnFinish(size_t index, const FinishOut& finish) override {
    Choice& choice = choices_[index];
    choice.text += finish.text;
    std::string events;
    auto send = [&](std::vector<TurnDelta> deltas) {
      for (TurnDelta& delta : deltas) events += Deltas(index, std::move(delta));
    };
    send(choice.turn.Push(finish.text));
    send(choice.turn.Finish());
    choice.stop_reason = StopReason(finish);
    choice.reason = finish.reason;
    if (choice.turn.calls() > 0 && choice.turn.complete() && finish.reason == "stop")
      choice.reason = "tool_calls";
    if (!request_.stream) return "";
    Json chunk = Chunk(index, Json::object(), choice.reason);
    chunk["choices"][0]["stop_reason"] = choice.stop_reason;
    return events + Event(chunk);
  }

  std::string End() override { return request_.stream ? LastEvents(kChunk) : ""; }

  web::Response Whole() override {
    Json body = Head("chat.completion");
    body["choices"] = Json::array();
    for (size_t i = 0; i < choices_.size(); ++i) {
      Choice& choice = choices_[i];
      Json entry = {{"index", i},
                    {"message", Message(choice)},
                    {"logprobs", nullptr},
                    {"finish_reason", choice.reason},
                    {"stop_reason", choice.stop_reason}};
      if (request_.logprobs) entry["logprobs"] = {{"content", choice.logprobs}};
      if (request_.return_token_ids) entry["token_ids"] = choice.ids;
      body["choices"].push_back(std::move(entry));
    }
    body["usage"] = Usage();
    if (request_.return_token_ids) body["prompt_token_ids"] = request_.prompts[0];
    return Finished(body);
  }

 private:
  static constexpr char kChunk[] = "chat.completion.chunk";
  struct Choice {
    explicit Choice(engine::ThinkingMode mode)
        : turn(mode), in_reasoning(mode == engine::ThinkingMode::kThinking) {}
    TurnStream turn;
    bool in_reasoning;
    std::string text;
    std::vector<int32_t> ids;
    Json logprobs = Json::array();
    size_t unsent = 0;  // first token whose id was not streamed
    std::string reason;
    Json stop_reason;
    std::vector<std::string> call_ids;
  };

  std::string CallName(size_t choice, size_t call) const {
    return fmt::format("call_{}_{}_{}", head_.id.substr(head_.id.find('-') + 1), choice, call);
  }

  Json Chunk(size_t index, Json delta, Json reason) const {
    Json chunk = Head(kChunk);
    chunk["choices"] = {{{"index", index},
                         {"delta", std::move(delta)},
                         {"logprobs", nullptr},
                         {"finish_reason", std::move(reason)}}};
    return chunk;
  }

  // Adds what is known of the tokens that were not sent yet.
  Json WithTokens(size_t index, Json chunk) {
    Choice& choice = choices_[index];
    Json& entry = chunk["choices"][0];
    if (request_.return_token_ids) {
      entry["token_ids"] = std::vector<int32_t>(
          choice.ids.begin() + static_cast<ptrdiff_t>(choice.unsent), choice.ids.end());
    }
    if (request_.logprobs && choice.unsent < choice.ids.size()) {
      Json content = Json::array();
      for (size_t i = choice.unsent; i < choice.logprobs.size(); ++i)
        content.push_back(choice.logprobs[i]);
      entry["logprobs"] = {{"content", std::move(content)}};
    }
    choice.unsent = choice.ids.size();
    return chunk;
  }

  std::string Deltas(size_t index, TurnDelta delta) {
    if (!request_.stream) return "";
    const size_t calls = choices_[index].call_ids.size();
    Json part;
    switch (delta.kind) {
      case TurnDelta::Kind::kReasoning:
        part = {{"reasoning_content", delta.text}};
        break;
      case TurnDelta::Kind::kContent:
        part = {{"content", delta.text}};
        break;
      case TurnDelta::Kind::kCall:
        choices_[index].call_ids.push_back(CallName(index, calls));
        part["tool_calls"] = {{{"index", calls},
                               {"id", choices_[index].call_ids.back()},
                               {"type", "function"},
                               {"function", {{"name", delta.text}, {"arguments", ""}}}}};
        break;
      case TurnDelta::Kind::kArguments:
        part["tool_calls"] = {{{"index", calls - 1}, {"function", {{"arguments", delta.text}}}}};
        break;
    }
    return Event(WithTokens(index, Chunk(index, std::move(part), nullptr)));
  }

  Json Message(const Choice& choice) const {
    engine::ParsedTurn turn = engine::ParseTurn(choice.text, request_.mode);
    Json message = {{"role", "assistant"}, {"content", turn.content}};
    if (!turn.reasoning.empty()) message["reasoning_content"] = turn.reasoning;
    if (!turn.error.empty()) {
      // Markup that is no call is shown as it came: nothing of an answer is lost.
      const size_t skip = turn.reasoning.empty() ? 0 : choice.text.find("</think>");
      message["content"] = skip == std::string::npos ? ""
                           : skip == 0               ? choice.text
                                                     : choice.text.substr(skip + 8);
      return message;
    }
    for (size_t i = 0; i < turn.tool_calls.size(); ++i) {
      message["tool_calls"].push_back(
          {{"id", CallName(static_cast<size_t>(&choice - choices_.data()), i)},
           {"type", "function"},
           {"function",
            {{"name", turn.tool_calls[i].name},
             {"arguments", turn.tool_calls[i].arguments_json}}}});
    }
    if (!turn.tool_calls.empty() && turn.content.empty()) message["content"] = nullptr;
    return message;
  }

  std::vector<Choice> choices_;
};

// ---- /v1/completions

class CompletionFormatter final : public OpenAiFormatter {
 public:
  CompletionFormatter(const OpenAiRequest& request, AnswerHead head,
                      const engine::Tokenizer* tokenizer)
      : OpenAiFormatter(request, std::move(head), tokenizer),
        choices_(request.prompts.size() * static_cast<size_t>(request.n)) {}

  std::string Begin() override {
    std::string events;
    for (size_t i = 0; i < choices_.size(); ++i) {
      if (!request_.echo && !request_.return_token_ids) continue;
      Json chunk = Chunk(i, Echo(i), nullptr);
      if (request_.return_token_ids) chunk["choices"][0]["prompt_token_ids"] = Prompt(i);
      events += Event(chunk);
    }
    return events;
  }

  std::string OnToken(size_t index, const TokenOut& token) override {
    Choice& choice = choices_[index];
    ++completion_;
    const bool special = request_.skip_special_tokens && tokenizer_->IsAddedToken(token.token.id);
    const std::string text = special ? "" : token.text;
    choice.ids.push_back(token.token.id);
    if (request_.logprobs) Add(token.token, choice.text.size(), &choice.logprobs);
    choice.text += text;
    if (!request_.stream) return "";
    if (text.empty() && !request_.return_token_ids && !request_.logprobs) return "";
    Json chunk = Chunk(index, text, nullptr);
    if (request_.return_token_ids) chunk["choices"][0]["token_ids"] = {token.token.id};
    if (request_.logprobs) {
      Json one = Empty();
      Add(token.token, choice.text.size() - text.size(), &one);
      chunk["choices"][0]["logprobs"] = std::move(one);
    }
    return Event(chunk);
  }

  std::string OnFinish(size_t index, const FinishOut& finish) override {
    Choice& choice = choices_[index];
    choice.text += finish.text;
    choice.reason = finish.reason;
    choice.stop_reason = StopReason(finish);
    if (!request_.stream) return "";
    Json chunk = Chunk(index, finish.text, choice.reason);
    chunk["choices"][0]["stop_reason"] = choice.stop_reason;
    return Event(chunk);
  }

  std::string End() override { return request_.stream ? LastEvents("text_completion") : ""; }

  web::Response Whole() override {
    Json body = Head("text_completion");
    body["choices"] = Json::array();
    for (size_t i = 0; i < choices_.size(); ++i) {
      Choice& choice = choices_[i];
      Json entry = {{"index", i},
                    {"text", Echo(i) + choice.text},
                    {"logprobs", nullptr},
                    {"finish_reason", choice.reason},
                    {"stop_reason", choice.stop_reason}};
      if (request_.logprobs) entry["logprobs"] = choice.logprobs;
      if (request_.return_token_ids) {
        entry["token_ids"] = choice.ids;
        entry["prompt_token_ids"] = Prompt(i);
      }
      body["choices"].push_back(std::move(entry));
    }
    body["usage"] = Usage();
    return Finished(body);
  }

 private:
  struct Choice {
    std::string text;
    std::vector<int32_t> ids;
    Json logprobs = Empty();
    std::string reason;
    Json stop_reason;
  };

  static Json Empty() {
    return {{"text_offset", Json::array()},
            {"token_logprobs", Json::array()},
            {"tokens", Json::array()},
            {"top_logprobs", Json::array()}};
  }
  void Add(const engine::SampledToken& token, size_t offset, Json* to) const {
    (*to)["text_offset"].push_back(offset);
    (*to)["token_logprobs"].push_back(logprobs_.Of(token));
    (*to)["tokens"].push_back(logprobs_.Name(token.id));
    Json top = Json::object();
    for (const engine::TokenLogprob& other : token.top)
      top[logprobs_.Name(other.id)] = logprobs_.Of(other);
    top[logprobs_.Name(token.id)] = logprobs_.Of(token);
    (*to)["top_logprobs"].push_back(std::move(top));
  }
  const std::vector<int32_t>& Prompt(size_t index) const {
    return request_.prompts[index / static_cast<size_t>(request_.n)];
  }
  std::string Echo(size_t index) const {
    return request_.echo ? ToUtf8(tokenizer_->Decode(Prompt(index))) : "";
  }
  Json Chunk(size_t index, const std::string& text, Json reason) const {
    Json chunk = Head("text_completion");
    chunk["choices"] = {{{"index", index},
                         {"text", text},
                         {"logprobs", nullptr},
                         {"finish_reason", std::move(reason)}}};
    return chunk;
  }

  std::vector<Choice> choices_;
};

}  // namespace

std::unique_ptr<Formatter> MakeOpenAiFormatter(const OpenAiRequest& request, AnswerHead head,
                                               const engine::Tokenizer* tokenizer) {
  if (request.chat) return std::make_unique<ChatFormatter>(request, std::move(head), tokenizer);
  return std::make_unique<CompletionFormatter>(request, std::move(head), tokenizer);
}

web::Response OpenAiError(const absl::Status& status) {
  const int code = web::HttpStatus(status.code());
  const std::string field = FieldOf(status);
  std::string type = code < 500 ? "invalid_request_error" : "server_error";
  Json reason;
  if (code == 401) reason = "invalid_api_key";
  if (code == 404) reason = field == "model" ? "model_not_found" : "not_found";
  if (code == 409) type = "conflict_error";
  if (code == 429) {
    type = "rate_limit_error";
    reason = "rate_limit_exceeded";
  }
  Json error = {{"message", Message(status)},
                {"type", type},
                {"param", field.empty() ? Json() : Json(field)},
                {"code", reason}};
  web::Response response = web::JsonResponse(code, Dump({{"error", std::move(error)}}));
  if (code == 429 || code == 503) response.headers.push_back({"Retry-After", "1"});
  return response;
}

}  // namespace reprise::rollout::http
