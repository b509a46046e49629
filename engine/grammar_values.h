// How strings and numbers are read, and texts that may lead to a marker. Internal to
// engine/grammar*.cc.
#pragma once

#include <algorithm>
#include <cstdint>

#include "engine/grammar_nodes.h"

namespace reprise::engine {

// What a text may not spell, first, then what is looked for in it.
const TextScan& ReasoningScan();
const TextScan& ContentScan();
inline constexpr int kForbidden = 2, kLookedFor = 2;

// GrammarFrame::at of kRaw and kString, in their text: kBody, plus the state of UTF-8, plus kEscape
// times that of an escape (1 after the backslash, 2 after u, 3..5 with three to one digits to come,
// 6 after uD: no surrogates), plus kScan times the state of the scan. Of kString 0: before the
// quotation mark.
inline constexpr uint32_t kBody = 1, kEscape = 8, kScan = 256;

inline uint32_t Utf8State(uint32_t at) { return (at - kBody) % kEscape; }
inline uint32_t EscapeState(uint32_t at) { return (at - kBody) % kScan / kEscape; }

// One more of the characters or items of a node; counts that it does not bound stop at its least.
inline uint64_t Counted(uint64_t count, const GrammarNode& node) {
  return node.max == kNoMax ? std::min(count + 1, node.min) : count + 1;
}

// A byte of a string, unquoted or not: no text may spell a marker, because the parser takes the
// text for one.
bool TakeCharacter(uint8_t byte, const GrammarNode& node, GrammarFrame* top);
// A JSON string is taken off the stack with its last quotation mark.
bool TakeString(Symbol symbol, const GrammarNode& node, GrammarStack* stack);
bool TakeNumber(Symbol symbol, const GrammarNode& node, GrammarFrame* top);
bool MayEndNumber(const GrammarFrame& top);

}  // namespace reprise::engine
