// An assistant turn as sampled: what becomes a call is whole.
#include <string_view>

#include "engine/chat.h"
#include "engine/json.h"
#include "tests/fuzz/target.h"

int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace reprise::engine;
  using reprise::fuzz::Require;
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  for (const ThinkingMode mode : {ThinkingMode::kChat, ThinkingMode::kThinking}) {
    const ParsedTurn turn = ParseTurn(text, mode);
    Require(turn.error.empty() || turn.tool_calls.empty(), "a malformed turn has no calls");
    for (const ToolCall& call : turn.tool_calls) {
      const auto arguments = ParseJson(call.arguments_json);
      Require(arguments.ok() && arguments->is_object(), "arguments are a JSON object");
    }
  }
  return 0;
}
