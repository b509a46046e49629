// What an answer may be, as a pushdown automaton over bytes and the two markers of the chat format:
// reasoning and content are free text, a block of calls is DSML whose names, order of tags and
// values follow the JSON schemas of the tools. Every answer that it accepts parses (chat.h), and
// the arguments of its calls validate.
//
// A state is a few small stacks, one for each way in which the text so far can be read; it is
// copied freely and is a function of the text alone, so that feeding the same tokens makes it
// again.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/container/inlined_vector.h"
#include "absl/status/statusor.h"
#include "engine/chat.h"

namespace reprise::engine {

// 0..255: a byte. The two markers are tokens of their own: their texts are never spelled.
using Symbol = uint16_t;
inline constexpr Symbol kDsmlSymbol = 256, kEosSymbol = 257;

// Open objects, arrays and tags of one reading; where a schema leaves a value free, nothing is
// opened any deeper.
inline constexpr size_t kGrammarDepthMax = 48;
inline constexpr size_t kGrammarNodesMax = 1 << 16;
inline constexpr size_t kPropertiesMax = 64;  // of one object

enum class CallChoice {
  kAuto,      // free text, and calls if the model opens a block
  kRequired,  // a block of at least one call, at once: after the reasoning, without content
  kNamed,     // likewise, one call of one tool
};

struct GrammarSpec {
  ThinkingMode mode = ThinkingMode::kThinking;  // where the answer begins
  CallChoice choice = CallChoice::kAuto;
  std::string tools_json;  // as ChatOptions::tools_json
  std::string tool;        // kNamed
  int32_t max_calls = 0;   // in the block; 0: any number
  // Instead of calls: the content is one JSON value of this schema. "" = none.
  std::string response_schema_json;
};

struct GrammarFrame {
  uint32_t node = 0;  // of the grammar
  uint32_t at = 0;    // place in the node
  uint64_t data = 0;  // counts, or which properties are there
  bool operator==(const GrammarFrame&) const = default;
};
using GrammarStack = absl::InlinedVector<GrammarFrame, 6>;

struct GrammarState {
  absl::InlinedVector<GrammarStack, 1> stacks;  // none: nothing can be read this way
  bool operator==(const GrammarState&) const = default;
};

class AnswerGrammar {
 public:
  // INVALID_ARGUMENT, one line naming tool, path and keyword: a schema that is malformed, or says
  // something that is not enforced here (docs/structured.md has the list). Nothing is left out in
  // silence.
  static absl::StatusOr<std::shared_ptr<const AnswerGrammar>> Compile(const GrammarSpec& spec);
  virtual ~AnswerGrammar() = default;

  virtual GrammarState Start() const = 0;
  // The state after one more symbol, into `*after` (another object than `from`); false, and no
  // stacks, when it may not follow.
  virtual bool Next(const GrammarState& from, Symbol symbol, GrammarState* after) const = 0;
  // The answer is whole: its end-of-sentence marker was read.
  virtual bool Ended(const GrammarState& state) const = 0;
  // True where printable characters but `"`, `<`, `\` and U+Fxxx change nothing but a count, and
  // `*room` more of them may follow.
  virtual bool PlainText(const GrammarState& state, uint64_t* room) const = 0;
  // True where a text may be on its way to a marker: `*base` is the same state without that, and
  // what follows differs only where it goes on to the marker. REQUIRES: one stack.
  virtual bool WithoutLead(const GrammarState& state, GrammarState* base) const = 0;
  // A state that allows and forbids the same texts of up to `bytes` bytes, with counts that no such
  // text can tell apart made equal.
  virtual GrammarState Canonical(const GrammarState& state, uint64_t bytes) const = 0;
  // Equal for grammars that are equal.
  virtual const std::string& key() const = 0;
};

}  // namespace reprise::engine
