#include "engine/grammar_values.h"

#include <string_view>

#include "engine/chat_text.h"

namespace reprise::engine {
namespace {

using Kind = GrammarNode::Kind;

constexpr uint64_t kIntegerDigits = 18, kFractionDigits = 18, kExponentDigits = 2;
constexpr std::string_view kBlockLead = "\n\n<";  // before the marker of a block

// UTF-8 (RFC 3629): 0 between characters, 1..3 continuation bytes to come, then what may follow
// E0, ED, F0 and F4. 255: malformed.
constexpr uint32_t kMalformed = 255;
uint32_t NextUtf8(uint32_t state, uint8_t byte) {
  const auto in = [byte](int low, int high) { return byte >= low && byte <= high; };
  switch (state) {
    case 0:
      if (byte < 0x80) return 0;
      if (in(0xc2, 0xdf)) return 1;
      if (byte == 0xe0) return 4;
      if (byte == 0xed) return 5;
      if (in(0xe1, 0xef)) return 2;
      if (byte == 0xf0) return 6;
      if (in(0xf1, 0xf3)) return 3;
      return byte == 0xf4 ? 7 : kMalformed;
    case 4:
      return in(0xa0, 0xbf) ? 1 : kMalformed;
    case 5:
      return in(0x80, 0x9f) ? 1 : kMalformed;
    case 6:
      return in(0x90, 0xbf) ? 2 : kMalformed;
    case 7:
      return in(0x80, 0x8f) ? 2 : kMalformed;
    default:
      return in(0x80, 0xbf) ? state - 1 : kMalformed;
  }
}

// GrammarFrame::at of kNumber.
enum : uint32_t {
  kStart = 0,
  kMinus = 1,
  kZero = 2,
  kDigits = 3,
  kPoint = 4,
  kFraction = 5,
  kExponent = 6,
  kExponentSign = 7,
  kExponentDigit = 8
};

bool TakeEscape(uint8_t byte, uint32_t escape, uint32_t* after) {
  const bool digit = byte >= '0' && byte <= '9';
  const bool hex = digit || (byte >= 'a' && byte <= 'f') || (byte >= 'A' && byte <= 'F');
  switch (escape) {
    case 1:
      *after = byte == 'u' ? 2 : 0;
      return std::string_view("u\"\\/bfnrt").find(static_cast<char>(byte)) !=
             std::string_view::npos;
    case 2:
      *after = byte == 'd' || byte == 'D' ? 6 : 3;
      return hex;
    case 6:
      *after = 4;
      return digit && byte < '8';
    default:
      *after = escape == 5 ? 0 : escape + 1;
      return hex;
  }
}

}  // namespace

const TextScan& ReasoningScan() {
  static const TextScan scan({kDsml, kEos, kThinkClose});
  return scan;
}
const TextScan& ContentScan() {
  static const TextScan scan({kDsml, kEos, kBlockLead});
  return scan;
}

bool TakeCharacter(uint8_t byte, const GrammarNode& node, GrammarFrame* top) {
  const uint32_t at = std::max(top->at, kBody);
  if (Utf8State(at) == 0 && EscapeState(at) == 0) {
    if (top->data >= node.max) return false;
    top->data = Counted(top->data, node);
  }
  const auto scan = ContentScan().Next(static_cast<uint8_t>((at - kBody) / kScan), byte);
  const int found = ContentScan().Found(scan);
  if (found >= 0 && found < kForbidden) return false;
  uint32_t utf8 = 0, escape = 0;
  if (EscapeState(at) != 0) {
    if (!TakeEscape(byte, EscapeState(at), &escape)) return false;
  } else if (node.kind == Kind::kString && byte == '\\' && Utf8State(at) == 0) {
    escape = 1;
  } else {
    utf8 = NextUtf8(Utf8State(at), byte);
    if (utf8 == kMalformed) return false;
  }
  top->at = kBody + utf8 + escape * kEscape + scan * kScan;
  return true;
}

bool TakeString(Symbol symbol, const GrammarNode& node, GrammarStack* stack) {
  GrammarFrame& top = stack->back();
  if (top.at == 0) {
    top.at = kBody;
    return symbol == '"';
  }
  if (symbol > 255) return false;
  if (Utf8State(top.at) == 0 && EscapeState(top.at) == 0) {
    if (symbol == '"') {
      const bool long_enough = top.data >= node.min;
      stack->pop_back();
      return long_enough;
    }
    if (symbol < 0x20) return false;
  }
  return TakeCharacter(static_cast<uint8_t>(symbol), node, &top);
}

bool TakeNumber(Symbol symbol, const GrammarNode& node, GrammarFrame* top) {
  const bool digit = symbol >= '0' && symbol <= '9';
  const auto go = [top](uint32_t at, uint64_t data) {
    *top = {top->node, at, data};
    return true;
  };
  switch (top->at) {
    case kStart:
      if (symbol == '-' && node.negative) return go(kMinus, 0);
      [[fallthrough]];
    case kMinus:
      if (symbol == '0') return (node.zero || top->at == kMinus) && go(kZero, 0);
      return digit && go(kDigits, 1);
    case kDigits:
      if (digit) return top->data < kIntegerDigits && go(kDigits, top->data + 1);
      [[fallthrough]];
    case kZero:
      if (node.integer) return false;
      if (symbol == '.') return go(kPoint, 0);
      return (symbol == 'e' || symbol == 'E') && go(kExponent, 0);
    case kPoint:
      return digit && go(kFraction, 1);
    case kFraction:
      if (digit) return top->data < kFractionDigits && go(kFraction, top->data + 1);
      return (symbol == 'e' || symbol == 'E') && go(kExponent, 0);
    case kExponent:
      if (symbol == '+' || symbol == '-') return go(kExponentSign, 0);
      [[fallthrough]];
    case kExponentSign:
      return digit && go(kExponentDigit, 1);
    default:
      return digit && top->data < kExponentDigits && go(kExponentDigit, top->data + 1);
  }
}

bool MayEndNumber(const GrammarFrame& top) {
  return top.at == kZero || top.at == kDigits || top.at == kFraction || top.at == kExponentDigit;
}

}  // namespace reprise::engine
