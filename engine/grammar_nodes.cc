#include "engine/grammar_nodes.h"

#include <algorithm>
#include <deque>

#include "engine/chat_text.h"

namespace reprise::engine {
namespace {

using Kind = GrammarNode::Kind;

std::vector<Symbol> Symbols(std::string_view text) {
  std::vector<Symbol> symbols;
  while (!text.empty()) {
    const bool marker = text.starts_with(kDsml);
    symbols.push_back(marker ? kDsmlSymbol : static_cast<uint8_t>(text[0]));
    text.remove_prefix(marker ? kDsml.size() : 1);
  }
  return symbols;
}

}  // namespace

TextScan::TextScan(const std::vector<std::string_view>& texts) {
  const auto add_state = [this] {
    next_.emplace_back().fill(0);
    found_.push_back(-1);
    return static_cast<uint8_t>(next_.size() - 1);
  };
  add_state();
  for (size_t i = 0; i < texts.size(); ++i) {
    uint8_t state = 0;
    for (const char c : texts[i]) {
      const auto byte = static_cast<uint8_t>(c);
      if (next_[state][byte] == 0) {
        const uint8_t fresh = add_state();
        next_[state][byte] = fresh;
      }
      state = next_[state][byte];
    }
    found_[state] = static_cast<int>(i);
  }
  // Breadth first: where a text does not go on, its longest suffix that begins one does.
  std::vector<uint8_t> suffix(next_.size(), 0);
  std::deque<uint8_t> queue;
  for (const uint8_t state : next_[0]) {
    if (state != 0) queue.push_back(state);
  }
  for (; !queue.empty(); queue.pop_front()) {
    const uint8_t state = queue.front();
    if (found_[state] < 0) found_[state] = found_[suffix[state]];
    for (size_t byte = 0; byte < 256; ++byte) {
      uint8_t& next = next_[state][byte];
      const uint8_t otherwise = next_[suffix[state]][byte];
      if (next == 0) {
        next = otherwise;
      } else {
        suffix[next] = otherwise;
        queue.push_back(next);
      }
    }
  }
}

void GrammarTrie::Add(std::string_view text, int32_t leaf, uint64_t bits) {
  uint32_t at = 0;
  nodes[0].below |= bits;
  for (const Symbol symbol : Symbols(text)) {
    uint32_t next = Next(at, symbol);
    if (next == 0) {
      next = static_cast<uint32_t>(nodes.size());
      nodes[at].next.emplace_back(symbol, next);
      nodes.emplace_back();
    }
    at = next;
    nodes[at].below |= bits;
  }
  nodes[at].leaf = leaf;
}

uint32_t GrammarTrie::Next(uint32_t node, Symbol symbol) const {
  for (const auto& [key, next] : nodes[node].next) {
    if (key == symbol) return next;
  }
  return 0;
}

GrammarNodes::GrammarNodes() {
  const auto add = [this](Kind kind) {
    GrammarNode node;
    node.kind = kind;
    return Add(std::move(node));
  };
  end = add(Kind::kEnd);
  done = add(Kind::kDone);
  space = add(Kind::kSpace);
  any_raw = add(Kind::kRaw);
  any_string = add(Kind::kString);
  block_open = Literal("tool_calls>\n");
  block_close = Literal("｜DSML｜tool_calls>");
  call_open = Literal("invoke name=\"");
  call_close = Literal("｜DSML｜invoke>\n");
  call_close_tag = Literal("</｜DSML｜invoke>\n");
  parameter_open = Literal("parameter name=\"");
  parameter_close = Literal("</｜DSML｜parameter>\n");
  colon = Literal(":");

  GrammarNode words;
  words.kind = Kind::kValues;
  for (const std::string_view word : {"null", "true", "false"}) words.trie.Add(word, 0, 1);
  GrammarNode map, array, all;
  map.kind = Kind::kMap;
  array.kind = Kind::kArray;
  map.free = array.free = true;
  all.kind = Kind::kAnyOf;
  all.children = {Add(std::move(words)), add(Kind::kNumber), any_string, Add(std::move(map)),
                  Add(std::move(array))};
  const uint32_t map_node = all.children[3], array_node = all.children[4];
  any = Add(std::move(all));
  nodes_[map_node].item = nodes_[array_node].item = any;
}

uint32_t GrammarNodes::Add(GrammarNode node) {
  nodes_.push_back(std::move(node));
  return static_cast<uint32_t>(nodes_.size() - 1);
}

uint32_t GrammarNodes::Literal(std::string_view text) {
  GrammarNode node;
  node.kind = Kind::kLiteral;
  node.literal = Symbols(text);
  return Add(std::move(node));
}

}  // namespace reprise::engine
