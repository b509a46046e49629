// The automaton at work, and the turn around the values of grammar_schema.cc.
#include "engine/grammar.h"

#include <algorithm>
#include <utility>

#include <fmt/format.h>

#include "base/status_macros.h"
#include "engine/chat_text.h"
#include "engine/grammar_nodes.h"
#include "engine/json.h"

namespace reprise::engine {
namespace {

using Kind = GrammarNode::Kind;

constexpr uint64_t kIntegerDigits = 18, kFractionDigits = 18, kExponentDigits = 2;
constexpr std::string_view kBlockLead = "\n\n<";  // before the marker of a block

// What a text may not spell, first, then what is looked for in it.
const TextScan& ReasoningScan() {
  static const TextScan scan({kDsml, kEos, kThinkClose});
  return scan;
}
const TextScan& ContentScan() {
  static const TextScan scan({kDsml, kEos, kBlockLead});
  return scan;
}
constexpr int kForbidden = 2, kLookedFor = 2;

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

// GrammarFrame::at of kRaw and kString, in their text: kBody, plus the state of UTF-8, plus kEscape
// times that of an escape (1 after the backslash, 2 after u, 3..5 with three to one digits to come,
// 6 after uD: no surrogates), plus kScan times the state of the scan. Of kString 0: before the
// quotation mark.
constexpr uint32_t kBody = 1, kEscape = 8, kScan = 256;

uint32_t Utf8State(uint32_t at) { return (at - kBody) % kEscape; }
uint32_t EscapeState(uint32_t at) { return (at - kBody) % kScan / kEscape; }

// GrammarFrame::at of kBlock, kCall, kObject, kMap and kArray.
enum : uint32_t { kFirst = 0, kAfterOpen = 1, kAfterValue = 2, kAfterComma = 3, kBeforeNext = 4 };
enum : uint32_t { kTag = 0, kMoreTags = 1, kInTag = 2, kClosing = 3 };
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

uint64_t Counted(uint64_t count, const GrammarNode& node) {
  return node.max == kNoMax ? std::min(count + 1, node.min) : count + 1;
}

class Grammar final : public AnswerGrammar {
 public:
  Grammar(GrammarNodes nodes, std::vector<uint32_t> start, std::string key)
      : nodes_(std::move(nodes)), start_(std::move(start)), key_(std::move(key)) {}

  GrammarState Start() const override {
    GrammarState state;
    GrammarStack& stack = state.stacks.emplace_back();
    for (const uint32_t node : start_) stack.push_back({node, 0, 0});
    return state;
  }

  bool Next(const GrammarState& from, Symbol symbol, GrammarState* after) const override {
    after->stacks.clear();
    for (const GrammarStack& stack : from.stacks) Read(stack, symbol, after);
    return !after->stacks.empty();
  }

  bool Ended(const GrammarState& state) const override {
    return state.stacks.size() == 1 && state.stacks[0].back().node == nodes_.done;
  }

  bool PlainText(const GrammarState& state, uint64_t* room) const override {
    if (state.stacks.size() != 1) return false;
    const GrammarFrame& top = state.stacks[0].back();
    const GrammarNode& node = nodes_.at(top.node);
    *room = kNoMax;
    if (node.kind == Kind::kReasoning || node.kind == Kind::kContent) return top.at == 0;
    if (node.max != kNoMax) *room = node.max - top.data;
    return (node.kind == Kind::kRaw && top.at <= kBody) ||
           (node.kind == Kind::kString && top.at == kBody);
  }

  bool WithoutLead(const GrammarState& state, GrammarState* base) const override {
    const GrammarFrame& top = state.stacks[0].back();
    const Kind kind = nodes_.at(top.node).kind;
    uint32_t at = top.at;
    if (kind == Kind::kReasoning || kind == Kind::kContent) {
      at = 0;
    } else if ((kind == Kind::kRaw || kind == Kind::kString) && top.at >= kBody) {
      at = kBody + (top.at - kBody) % kScan;
    }
    if (at == top.at) return false;
    *base = state;
    base->stacks[0].back().at = at;
    return true;
  }

  GrammarState Canonical(const GrammarState& state, uint64_t bytes) const override {
    GrammarState out = state;
    for (GrammarStack& stack : out.stacks) {
      GrammarFrame& top = stack.back();
      const GrammarNode& node = nodes_.at(top.node);
      if ((node.kind != Kind::kRaw && node.kind != Kind::kString) || node.max == kNoMax) continue;
      if (top.data >= node.min && node.max - top.data > bytes) top.data = node.min;
    }
    return out;
  }

  const std::string& key() const override { return key_; }

 private:
  static void Put(GrammarStack stack, GrammarState* after) {
    if (std::find(after->stacks.begin(), after->stacks.end(), stack) == after->stacks.end())
      after->stacks.push_back(std::move(stack));
  }
  static void Push(uint32_t node, GrammarStack* stack) { stack->push_back({node, 0, 0}); }

  // Whether the node at the top may end before the next symbol.
  bool MayEnd(const GrammarFrame& top, const GrammarNode& node) const {
    switch (node.kind) {
      case Kind::kBlock:
        return top.at == kClosing;
      case Kind::kRaw:
        return top.data >= node.min && Utf8State(std::max(top.at, kBody)) == 0;
      case Kind::kValues:
        return node.trie.nodes[top.at].leaf >= 0;
      case Kind::kNumber:
        return top.at == kZero || top.at == kDigits || top.at == kFraction ||
               top.at == kExponentDigit;
      case Kind::kSpace:
        return true;
      default:
        return false;
    }
  }

  // Adds what `stack` can be after `symbol`.
  void Read(const GrammarStack& stack, Symbol symbol, GrammarState* after) const {
    const GrammarFrame& top = stack.back();
    const GrammarNode& node = nodes_.at(top.node);
    if (node.kind == Kind::kAnyOf) {
      GrammarStack one = stack;
      for (const uint32_t child : node.children) {
        one.back() = {child, 0, 0};
        Read(one, symbol, after);
      }
      return;
    }
    if (MayEnd(top, node)) {
      GrammarStack rest = stack;
      rest.pop_back();
      Read(rest, symbol, after);
    }
    GrammarStack next = stack;
    if (Take(symbol, node, &next, after)) Put(std::move(next), after);
  }

  // Reads `symbol` in the node at the top; false: it cannot, or `after` has all that follows.
  bool Take(Symbol symbol, const GrammarNode& node, GrammarStack* stack,
            GrammarState* after) const {
    GrammarFrame& top = stack->back();
    switch (node.kind) {
      case Kind::kReasoning:
      case Kind::kContent:
        return TakeText(symbol, node, stack);
      case Kind::kEnd:
        top = {nodes_.done, 0, 0};
        return symbol == kEosSymbol;
      case Kind::kDone:
      case Kind::kAnyOf:
        return false;
      case Kind::kLiteral:
        if (symbol != node.literal[top.at]) return false;
        if (++top.at == node.literal.size()) stack->pop_back();
        return true;
      case Kind::kBlock:
        return TakeBlock(symbol, node, stack);
      case Kind::kTools:
        return TakeTool(symbol, node, &top);
      case Kind::kCall:
        return TakeCall(symbol, node, stack);
      case Kind::kNames:
        return TakeName(symbol, node, stack);
      case Kind::kRaw:
        return symbol < 256 && TakeCharacter(static_cast<uint8_t>(symbol), node, &top);
      case Kind::kValues:
        top.at = node.trie.Next(top.at, symbol);
        return top.at != 0;
      case Kind::kString:
        return TakeString(symbol, node, stack);
      case Kind::kNumber:
        return TakeNumber(symbol, node, &top);
      case Kind::kObject:
      case Kind::kMap:
        return TakeObject(symbol, node, stack);
      case Kind::kArray:
        return TakeArray(symbol, node, stack, after);
      case Kind::kSpace:
        stack->pop_back();
        return symbol == ' ';
    }
    return false;
  }

  bool TakeText(Symbol symbol, const GrammarNode& node, GrammarStack* stack) const {
    GrammarFrame& top = stack->back();
    const bool reasoning = node.kind == Kind::kReasoning;
    const TextScan& scan = reasoning ? ReasoningScan() : ContentScan();
    if (symbol > 255) {
      if (reasoning) return false;
      const bool opens = scan.Found(static_cast<uint8_t>(top.at)) == kLookedFor;
      if (symbol == kDsmlSymbol && !opens) return false;
      stack->clear();
      if (symbol == kEosSymbol) {
        Push(nodes_.done, stack);
        return true;
      }
      for (const uint32_t child : node.children) Push(child, stack);
      return true;
    }
    top.at = scan.Next(static_cast<uint8_t>(top.at), static_cast<uint8_t>(symbol));
    const int found = scan.Found(static_cast<uint8_t>(top.at));
    if (found >= 0 && found < kForbidden) return false;
    if (reasoning && found == kLookedFor) {
      stack->clear();
      for (const uint32_t child : node.children) Push(child, stack);
    }
    return true;
  }

  bool TakeBlock(Symbol symbol, const GrammarNode& node, GrammarStack* stack) const {
    GrammarFrame& top = stack->back();
    if (top.at == kTag) {
      top.at = kInTag;
      return symbol == '<';
    }
    if (top.at != kInTag) return false;
    if (symbol == kDsmlSymbol && top.data < node.max) {
      top.data = Counted(top.data, node);
      top.at = kTag;
      Push(node.item, stack);
      Push(nodes_.call_open, stack);
      return true;
    }
    if (symbol != '/' || top.data < node.min) return false;
    top.at = kClosing;
    Push(nodes_.block_close, stack);
    return true;
  }

  static bool TakeTool(Symbol symbol, const GrammarNode& node, GrammarFrame* top) {
    top->at = node.trie.Next(top->at, symbol);
    if (top->at == 0) return false;
    const int32_t leaf = node.trie.nodes[top->at].leaf;
    if (leaf >= 0) *top = {node.children[static_cast<size_t>(leaf)], 0, 0};
    return true;
  }

  bool TakeCall(Symbol symbol, const GrammarNode& node, GrammarStack* stack) const {
    GrammarFrame& top = stack->back();
    const bool whole = (node.required & ~top.data) == 0;
    if (top.at == kTag && symbol == '\n' && whole) {
      stack->pop_back();
      Push(nodes_.call_close_tag, stack);
      return true;
    }
    if (top.at == kTag || top.at == kMoreTags) {
      top.at = kInTag;
      return symbol == '<';
    }
    if (symbol == kDsmlSymbol && (node.all & ~top.data) != 0) {
      top.at = kMoreTags;
      const uint32_t names = node.item;
      Push(names, stack);
      Push(nodes_.parameter_open, stack);
      return true;
    }
    if (symbol != '/' || !whole) return false;
    stack->pop_back();
    Push(nodes_.call_close, stack);
    return true;
  }

  bool TakeName(Symbol symbol, const GrammarNode& node, GrammarStack* stack) const {
    GrammarFrame& top = stack->back();
    GrammarFrame& owner = (*stack)[stack->size() - 2];
    top.at = node.trie.Next(top.at, symbol);
    const GrammarTrie::Node& at = node.trie.nodes[top.at];
    if (top.at == 0 || (at.below & ~owner.data) == 0) return false;
    if (at.leaf < 0) return true;
    owner.data |= at.below;
    const bool call = nodes_.at(owner.node).kind == Kind::kCall;
    stack->pop_back();
    if (call) Push(nodes_.parameter_close, stack);
    Push(node.children[static_cast<size_t>(at.leaf)], stack);
    if (!call) Push(nodes_.space, stack);
    return true;
  }

  // A byte of a string, unquoted or not: no text may spell a marker, because the parser takes the
  // text for one.
  static bool TakeCharacter(uint8_t byte, const GrammarNode& node, GrammarFrame* top) {
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

  bool TakeString(Symbol symbol, const GrammarNode& node, GrammarStack* stack) const {
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

  static bool TakeEscape(uint8_t byte, uint32_t escape, uint32_t* after) {
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

  static bool TakeNumber(Symbol symbol, const GrammarNode& node, GrammarFrame* top) {
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

  // An object: its members' names are `item`'s, or, of a map, any.
  bool TakeObject(Symbol symbol, const GrammarNode& node, GrammarStack* stack) const {
    GrammarFrame& top = stack->back();
    const bool map = node.kind == Kind::kMap;
    const bool more = map || (node.all & ~top.data) != 0;
    const bool whole = (node.required & ~top.data) == 0;
    switch (top.at) {
      case kFirst:
        top.at = kAfterOpen;
        return symbol == '{' && (!node.free || stack->size() < kGrammarDepthMax);
      case kAfterOpen:
      case kAfterValue:
        if (symbol == '}') {
          stack->pop_back();
          return whole;
        }
        if (!more) return false;
        if (top.at == kAfterValue) {
          top.at = kAfterComma;
          return symbol == ',';
        }
        break;
      case kAfterComma:
        if (symbol == ' ') {
          top.at = kBeforeNext;
          return true;
        }
        break;
      default:
        break;
    }
    if (symbol != '"') return false;
    top.at = kAfterValue;
    const uint32_t item = node.item;
    if (map) {
      Push(item, stack);
      Push(nodes_.space, stack);
      Push(nodes_.colon, stack);
      stack->push_back({nodes_.any_string, kBody, 0});
    } else {
      Push(item, stack);
    }
    return true;
  }

  bool TakeArray(Symbol symbol, const GrammarNode& node, GrammarStack* stack,
                 GrammarState* after) const {
    GrammarFrame& top = stack->back();
    switch (top.at) {
      case kFirst:
        top.at = kAfterOpen;
        return symbol == '[' && (!node.free || stack->size() < kGrammarDepthMax);
      case kAfterOpen:
      case kAfterValue:
        if (symbol == ']') {
          const bool enough = top.data >= node.min;
          stack->pop_back();
          return enough;
        }
        if (top.data >= node.max) return false;
        if (top.at == kAfterValue) {
          top.at = kAfterComma;
          return symbol == ',';
        }
        break;
      case kAfterComma:
        if (symbol == ' ') {
          top.at = kBeforeNext;
          return true;
        }
        break;
      default:
        break;
    }
    top.data = Counted(top.data, node);
    top.at = kAfterValue;
    Push(node.item, stack);
    Read(*stack, symbol, after);
    return false;
  }

  const GrammarNodes nodes_;
  const std::vector<uint32_t> start_;
  const std::string key_;
};

absl::Status AddTool(const JsonValue& tool, size_t index, GrammarNodes* nodes, GrammarNode* tools) {
  const JsonValue* function = tool.Find("function");
  if (function == nullptr) function = &tool;
  const JsonValue* name = function->Find("name");
  if (name == nullptr || !name->is_string() || name->text.empty())
    return absl::InvalidArgumentError(fmt::format("tools[{}]: the function has no name", index));
  if (name->text.find_first_of("\"\n") != name->text.npos ||
      name->text.find(kDsml) != name->text.npos || name->text.find(kEos) != name->text.npos) {
    return absl::InvalidArgumentError(
        fmt::format("tools[{}]: a tool cannot be named \"{}\"", index, name->text));
  }
  JsonValue none;
  none.kind = JsonValue::Kind::kObject;
  const JsonValue* parameters = function->Find("parameters");
  if (parameters == nullptr || parameters->is_null()) parameters = &none;
  SchemaCompiler compiler(nodes, *parameters, fmt::format("tool \"{}\"", name->text));
  ASSIGN_OR_RETURN(const uint32_t call, compiler.Call(*parameters, "parameters"));
  tools->trie.Add(name->text + "\">\n", static_cast<int32_t>(tools->children.size()), 1);
  tools->children.push_back(call);
  return absl::OkStatus();
}

// The node that follows the opener of a block; nothing is added where there is no tool.
absl::StatusOr<uint32_t> AddBlock(const GrammarSpec& spec, GrammarNodes* nodes) {
  ASSIGN_OR_RETURN(const JsonValue list, ParseJson(spec.tools_json));
  if (!list.is_array()) return absl::InvalidArgumentError("tools: an array is wanted");
  GrammarNode tools, block;
  tools.kind = Kind::kTools;
  block.kind = Kind::kBlock;
  for (size_t i = 0; i < list.items.size(); ++i) {
    const JsonValue& tool = list.items[i];
    const JsonValue* function = tool.Find("function");
    const JsonValue* name = (function == nullptr ? &tool : function)->Find("name");
    if (spec.choice == CallChoice::kNamed && (name == nullptr || name->text != spec.tool)) continue;
    RETURN_IF_ERROR(AddTool(tool, i, nodes, &tools));
  }
  if (tools.children.empty()) {
    return absl::InvalidArgumentError(
        spec.choice == CallChoice::kNamed
            ? fmt::format("there is no tool \"{}\" that the answer could call", spec.tool)
            : "there is no tool that the answer could call");
  }
  block.item = nodes->Add(std::move(tools));
  block.min = 1;
  if (spec.max_calls > 0) block.max = static_cast<uint64_t>(spec.max_calls);
  if (spec.choice == CallChoice::kNamed) block.max = 1;
  return nodes->Add(std::move(block));
}

}  // namespace

absl::StatusOr<std::shared_ptr<const AnswerGrammar>> AnswerGrammar::Compile(
    const GrammarSpec& spec) {
  GrammarNodes nodes;
  std::vector<uint32_t> start;  // after the reasoning, the bottom of the stack first
  if (!spec.response_schema_json.empty()) {
    ASSIGN_OR_RETURN(const JsonValue schema, ParseJson(spec.response_schema_json));
    SchemaCompiler compiler(&nodes, schema, "response schema");
    ASSIGN_OR_RETURN(const uint32_t value, compiler.Json(schema, "schema", 0));
    start = {nodes.end, value};
  } else {
    ASSIGN_OR_RETURN(const uint32_t block, AddBlock(spec, &nodes));
    start = {nodes.end, block};
    if (spec.choice == CallChoice::kAuto) {
      GrammarNode content;
      content.kind = Kind::kContent;
      content.children = {nodes.end, block, nodes.block_open};
      start = {nodes.Add(std::move(content))};
    } else {
      start.push_back(nodes.Literal(fmt::format("\n\n{}\n", kCallsOpen)));
    }
  }
  if (spec.mode == ThinkingMode::kThinking) {
    GrammarNode reasoning;
    reasoning.kind = Kind::kReasoning;
    reasoning.children = start;
    start = {nodes.Add(std::move(reasoning))};
  }
  std::string key =
      fmt::format("{} {} {} {}\n{}\n{}", static_cast<int>(spec.mode), static_cast<int>(spec.choice),
                  spec.max_calls, spec.tool, spec.tools_json, spec.response_schema_json);
  return std::make_shared<Grammar>(std::move(nodes), std::move(start), std::move(key));
}

}  // namespace reprise::engine
