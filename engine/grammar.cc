// The automaton at work.
#include "engine/grammar.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "engine/grammar_nodes.h"
#include "engine/grammar_values.h"

namespace reprise::engine {
namespace {

using Kind = GrammarNode::Kind;

// GrammarFrame::at of kBlock, kCall, kObject, kMap and kArray.
enum : uint32_t { kFirst = 0, kAfterOpen = 1, kAfterValue = 2, kAfterComma = 3, kBeforeNext = 4 };
enum : uint32_t { kTag = 0, kMoreTags = 1, kInTag = 2, kClosing = 3 };
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
        return MayEndNumber(top);
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

  // The brackets of a list of items, and whether it may end, or go on, where it is now.
  struct Brackets {
    Symbol open, close;
    bool may_end, more;
  };
  // What stands around and between items: brackets, and commas with a space or none. Whether
  // `symbol` is possible there; nullopt: it is an item's, if it may stand there at all.
  static std::optional<bool> TakeSeparator(Symbol symbol, const Brackets& list,
                                           const GrammarNode& node, GrammarStack* stack) {
    GrammarFrame& top = stack->back();
    switch (top.at) {
      case kFirst:
        top.at = kAfterOpen;
        return symbol == list.open && (!node.free || stack->size() < kGrammarDepthMax);
      case kAfterOpen:
      case kAfterValue:
        if (symbol == list.close) {
          stack->pop_back();
          return list.may_end;
        }
        if (!list.more) return false;
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
    return std::nullopt;
  }

  // An object: its members' names are `item`'s, or, of a map, any.
  bool TakeObject(Symbol symbol, const GrammarNode& node, GrammarStack* stack) const {
    GrammarFrame& top = stack->back();
    const bool map = node.kind == Kind::kMap;
    const bool more = map || (node.all & ~top.data) != 0;
    const bool whole = (node.required & ~top.data) == 0;
    const std::optional<bool> separator =
        TakeSeparator(symbol, {'{', '}', whole, more}, node, stack);
    if (separator.has_value()) return *separator;
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
    const std::optional<bool> separator =
        TakeSeparator(symbol, {'[', ']', top.data >= node.min, top.data < node.max}, node, stack);
    if (separator.has_value()) return *separator;
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

}  // namespace

std::shared_ptr<const AnswerGrammar> MakeAutomaton(GrammarNodes nodes, std::vector<uint32_t> start,
                                                   std::string key) {
  return std::make_shared<Grammar>(std::move(nodes), std::move(start), std::move(key));
}

}  // namespace reprise::engine
