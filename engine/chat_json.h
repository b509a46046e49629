// Messages as the chat encoder works on them: read from JSON, merged and sorted. Internal to
// engine/chat*.cc.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/chat.h"
#include "engine/json.h"

namespace reprise::engine {

// A part of a user turn.
struct ChatBlock {
  enum class Kind { kText, kToolResult, kUnsupported } kind = Kind::kText;
  std::string text;          // text, joined result, or the unsupported type's name
  std::string tool_call_id;  // kToolResult
};

struct ChatCall {
  std::string id;
  std::string name;
  JsonValue arguments;  // an object, or a string that is no JSON
};

struct ChatMessage {
  std::string role;
  std::string content;
  std::string reasoning;
  std::vector<ChatBlock> blocks;  // role user
  std::vector<ChatCall> calls;    // role assistant
  JsonValue tools;                // array; null when none
  JsonValue response_format;      // null when none
  std::string task;
  bool wo_eos = false;
};

// Reads messages (a JSON array, or an object with "messages" and "tools") and request-level tools,
// and applies steps a and b of the preprocessing: merging into user turns and sorting of tool
// results.
absl::StatusOr<std::vector<ChatMessage>> ReadMessages(std::string_view messages_json,
                                                      std::string_view tools_json);

}  // namespace reprise::engine
