// The DeepSeek-V4 chat format: messages to prompt, sampled text back to reasoning, content and tool
// calls. Byte-exact with the published encoder; sources in docs/encoding.md.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/tokenizer.h"

namespace reprise::engine {

enum class ThinkingMode { kChat, kThinking };
enum class Effort { kNone, kHigh, kMax };

absl::StatusOr<ThinkingMode> ParseThinkingMode(std::string_view name);  // "chat" | "thinking"
absl::StatusOr<Effort> ParseEffort(std::string_view name);  // "none" | "high" | "max" | ""

struct ChatOptions {
  ThinkingMode mode = ThinkingMode::kThinking;
  Effort effort = Effort::kNone;
  bool drop_thinking = true;
  bool add_bos = true;
  // JSON array of tools in OpenAI form ({"type":"function","function":{...}} or the function object
  // itself) that belong to the request; attached to the system message, or to an empty one in
  // front. "" = none.
  std::string tools_json;
};

// `messages_json`: a JSON array of messages, or an object {"messages": [...], "tools": [...]}.
// The joined text of the pieces is the official rendering. INVALID_ARGUMENT names the message and
// the field.
absl::StatusOr<std::vector<PromptPiece>> EncodeChat(std::string_view messages_json,
                                                    const ChatOptions& options);

// What follows an assistant turn that called tools (after its end-of-sentence token): the user turn
// with the results, in call order, and the next assistant prefix.
std::vector<PromptPiece> EncodeToolResults(const std::vector<std::string>& results,
                                           ThinkingMode mode);

std::string JoinPieces(const std::vector<PromptPiece>& pieces);

struct ToolCall {
  std::string name;
  std::string arguments_json;  // a JSON object
};

struct ParsedTurn {
  std::string reasoning;
  std::string content;
  std::vector<ToolCall> tool_calls;
  // Empty when the text is well formed; else what is wrong and where, for the model to read.
  std::string error;
};

// Parses one assistant turn as sampled (with or without its end-of-sentence text). `mode` says
// where it began: inside reasoning (kThinking) or in content. Strict in what becomes a call: a
// malformed block gives `error` and no calls, never a guessed one. Never fails: text that is no
// markup is content.
ParsedTurn ParseTurn(std::string_view text, ThinkingMode mode);

// JSON text in the form that prompts use (Python's json.dumps with ensure_ascii=False): keys in
// order, ", " and
// ": ", floats by repr. INVALID_ARGUMENT for text that is not JSON.
absl::StatusOr<std::string> PromptJson(std::string_view json);

}  // namespace reprise::engine
