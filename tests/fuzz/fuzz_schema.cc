// Tools, or a response schema, as a client sends them: what compiles never leads to where nothing
// may follow, and what it ends is an answer that parses.
#include <string>
#include <string_view>
#include <utility>

#include "engine/chat.h"
#include "engine/chat_text.h"
#include "engine/grammar.h"
#include "tests/fuzz/target.h"

namespace {

using namespace reprise::engine;
using reprise::fuzz::Require;

constexpr int kSteps = 300;

// Reads symbols that are allowed, those that close something first, until the end.
void ReadOn(const GrammarSpec& spec, uint64_t random) {
  const auto grammar = AnswerGrammar::Compile(spec);
  if (!grammar.ok()) {
    Require(!grammar.status().message().empty(), "a refusal says why");
    return;
  }
  GrammarState state = (*grammar)->Start(), after;
  std::string text;
  for (int step = 0; step < kSteps && !(*grammar)->Ended(state); ++step) {
    random = random * 6364136223846793005u + 1442695040888963407u;
    Symbol taken = 0;
    bool found = (*grammar)->Next(state, taken = kEosSymbol, &after) ||
                 (*grammar)->Next(state, taken = kDsmlSymbol, &after);
    for (const char c : std::string_view("/<\"}]")) {
      if (!found && (random >> 40) % 4 != 0)
        found = (*grammar)->Next(state, taken = static_cast<uint8_t>(c), &after);
    }
    for (Symbol i = 0; i < 256 && !found; ++i)
      found = (*grammar)->Next(state, taken = ((random >> 33) + i) & 0xff, &after);
    Require(found, "something may follow");
    text += taken == kEosSymbol    ? std::string(kEos)
            : taken == kDsmlSymbol ? std::string(kDsml)
                                   : std::string(1, static_cast<char>(taken));
    std::swap(state, after);
  }
  if (!(*grammar)->Ended(state)) return;
  const ParsedTurn turn = ParseTurn(text, spec.mode);
  Require(turn.error.empty(), "what has ended parses");
  Require(spec.choice == CallChoice::kAuto || !turn.tool_calls.empty(), "a call was required");
}

}  // namespace

int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  uint64_t random = size;
  for (size_t i = 0; i < size; ++i) random = random * 31 + data[i];
  GrammarSpec spec;
  spec.tools_json = std::string(reinterpret_cast<const char*>(data), size);
  for (const ThinkingMode mode : {ThinkingMode::kChat, ThinkingMode::kThinking}) {
    spec.mode = mode;
    for (const CallChoice choice : {CallChoice::kAuto, CallChoice::kRequired}) {
      spec.choice = choice;
      ReadOn(spec, random);
    }
  }
  spec.choice = CallChoice::kAuto;
  spec.response_schema_json = std::exchange(spec.tools_json, "");
  ReadOn(spec, random);
  return 0;
}
