// Messages and tools as a client sends them.
#include <string_view>

#include "engine/chat.h"
#include "tests/fuzz/target.h"

int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace reprise::engine;
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  for (const ThinkingMode mode : {ThinkingMode::kChat, ThinkingMode::kThinking}) {
    for (const bool drop : {false, true}) {
      ChatOptions options;
      options.mode = mode;
      options.drop_thinking = drop;
      options.effort = drop ? Effort::kMax : Effort::kNone;
      const auto pieces = EncodeChat(text, options);
      reprise::fuzz::Require(pieces.ok() || !pieces.status().message().empty(),
                             "a refusal says why");
      if (pieces.ok()) JoinPieces(*pieces);
    }
  }
  ChatOptions options;
  options.tools_json = std::string(text);
  EncodeChat(R"([{"role": "user", "content": "x"}])", options).status().IgnoreError();
  return 0;
}
