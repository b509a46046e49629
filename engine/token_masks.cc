#include "engine/token_masks.h"

#include <algorithm>
#include <bit>
#include <bitset>
#include <utility>

#include <fmt/format.h>

#include "engine/chat_text.h"

namespace reprise::engine {
namespace {

// States of an answer that are kept: a step's samples and guesses go back no further.
constexpr size_t kStatesKept = 8;

// How many characters `bytes` are, all of them whole and such as AnswerGrammar::PlainText speaks
// of; 0: they are not.
size_t PlainCharacters(std::string_view bytes) {
  size_t to_come = 0, count = 0;
  for (const char c : bytes) {
    const auto byte = static_cast<uint8_t>(c);
    if (to_come > 0) {
      if ((byte & 0xc0) != 0x80) return 0;
      --to_come;
      continue;
    }
    ++count;
    if (byte < 0x80) {
      if (byte < 0x20 || byte == '"' || byte == '<' || byte == '\\') return 0;
    } else if (byte >= 0xc2 && byte <= 0xdf) {
      to_come = 1;
    } else if (byte >= 0xe1 && byte <= 0xec) {
      to_come = 2;  // E0, ED and F0.. have rules of their own, and EF begins a marker
    } else {
      return 0;
    }
  }
  return to_come == 0 ? count : 0;
}

// Nodes of the trie over `tokens`, which are sorted by their bytes.
std::vector<TokenTrie::Node> Nodes(const std::vector<std::pair<std::string_view, int32_t>>& tokens,
                                   std::vector<int32_t>* ids) {
  std::vector<TokenTrie::Node> nodes;
  std::vector<size_t> open;  // the path to the last token
  const auto close = [&](size_t depth) {
    for (; open.size() > depth; open.pop_back())
      nodes[open.back()].skip = static_cast<uint32_t>(nodes.size());
  };
  std::string_view before;
  for (const auto& [bytes, id] : tokens) {
    size_t shared = 0;
    while (shared < std::min(before.size(), bytes.size()) && before[shared] == bytes[shared])
      ++shared;
    close(shared);
    for (size_t i = shared; i < bytes.size(); ++i) {
      open.push_back(nodes.size());
      TokenTrie::Node& node = nodes.emplace_back();
      node.depth = static_cast<uint16_t>(i);
      node.byte = static_cast<uint8_t>(bytes[i]);
      node.tokens = node.tokens_end = static_cast<uint32_t>(ids->size());
    }
    ids->push_back(id);
    nodes[open.back()].tokens_end = static_cast<uint32_t>(ids->size());
    before = bytes;
  }
  close(0);
  return nodes;
}

void Append(uint64_t value, std::string* out) {
  out->append(reinterpret_cast<const char*>(&value), sizeof(value));
}

std::string KeyOf(const GrammarState& state) {
  std::string key;
  for (const GrammarStack& stack : state.stacks) {
    Append(stack.size(), &key);
    for (const GrammarFrame& frame : stack) {
      Append(uint64_t{frame.node} << 32 | frame.at, &key);
      Append(frame.data, &key);
    }
  }
  return key;
}

}  // namespace

void TokenSet::AddAll(const TokenSet& other) {
  count = 0;
  for (size_t i = 0; i < bits.size(); ++i) {
    bits[i] |= other.bits[i];
    count += std::popcount(bits[i]);
  }
}

absl::StatusOr<std::shared_ptr<const TokenTrie>> TokenTrie::Make(const Tokenizer& tokenizer,
                                                                 int32_t vocab_size) {
  auto trie = std::make_shared<TokenTrie>();
  trie->vocab = static_cast<size_t>(vocab_size);
  const auto dsml = tokenizer.AddedTokenId(kDsml), eos = tokenizer.AddedTokenId(kEos);
  if (!dsml.has_value() || !eos.has_value()) {
    return absl::FailedPreconditionError(fmt::format(
        "structured output needs the added token \"{}\", which the model's tokenizer.json does not "
        "have",
        dsml.has_value() ? kEos : kDsml));
  }
  trie->dsml_id = *dsml;
  trie->eos_id = *eos;
  std::vector<std::pair<std::string_view, int32_t>> all, rest;
  std::vector<std::vector<int32_t>> plain;  // by characters
  std::bitset<256> single;
  trie->bytes_.resize(trie->vocab);
  for (int32_t id = 0; id < std::min(vocab_size, tokenizer.vocab_size()); ++id) {
    std::string& bytes = trie->bytes_[static_cast<size_t>(id)];
    bytes = tokenizer.TokenBytes(id);
    if (id == *dsml || id == *eos || bytes.empty()) continue;
    if (bytes.size() == 1) single.set(static_cast<uint8_t>(bytes[0]));
    trie->longest = std::max<uint64_t>(trie->longest, bytes.size());
    all.emplace_back(bytes, id);
    const size_t characters = PlainCharacters(bytes);
    if (characters > 0) {
      plain.resize(std::max(plain.size(), characters + 1));
      plain[characters].push_back(id);
    } else {
      rest.emplace_back(bytes, id);
    }
  }
  for (size_t byte = 0; byte < single.size(); ++byte) {
    if (single[byte]) continue;
    return absl::FailedPreconditionError(fmt::format(
        "structured output needs a token for every byte; the model's tokenizer.json has none for "
        "0x{:02x}",
        byte));
  }
  std::sort(all.begin(), all.end());
  std::sort(rest.begin(), rest.end());
  trie->all = Nodes(all, &trie->ids);
  trie->all_ids = trie->ids.size();
  trie->rest = Nodes(rest, &trie->ids);
  TokenSet up_to(trie->vocab);
  for (const std::vector<int32_t>& plain_ids : plain) {
    for (const int32_t id : plain_ids) up_to.Add(id);
    trie->plain.push_back(up_to);
  }
  return trie;
}

std::vector<Symbol> TokenTrie::SymbolsOf(int32_t id) const {
  if (id == dsml_id) return {kDsmlSymbol};
  if (id == eos_id) return {kEosSymbol};
  std::vector<Symbol> symbols;
  if (id < 0 || static_cast<size_t>(id) >= bytes_.size()) return symbols;
  for (const char c : bytes_[static_cast<size_t>(id)]) symbols.push_back(static_cast<uint8_t>(c));
  return symbols;
}

void TokenMasks::Walk(const std::vector<TokenTrie::Node>& nodes, size_t begin, size_t end,
                      const GrammarState& state, TokenSet* set) const {
  std::vector<GrammarState> path(trie_->longest + 1);  // [depth]: after so many bytes
  path[0] = state;
  for (size_t i = begin; i < end;) {
    const TokenTrie::Node& node = nodes[i];
    if (!grammar_->Next(path[node.depth], node.byte, &path[node.depth + 1])) {
      i = node.skip;
      continue;
    }
    for (uint32_t t = node.tokens; t < node.tokens_end; ++t) set->Add(trie_->ids[t]);
    ++i;
  }
}

void TokenMasks::AddMarkers(const GrammarState& state, TokenSet* set) const {
  GrammarState after;
  if (grammar_->Next(state, kDsmlSymbol, &after)) set->Add(trie_->dsml_id);
  if (grammar_->Next(state, kEosSymbol, &after)) set->Add(trie_->eos_id);
}

// What one reading allows is allowed.
TokenSet TokenMasks::OfReadings(const GrammarState& state) {
  TokenSet set(trie_->vocab);
  for (const GrammarStack& stack : state.stacks) {
    GrammarState one;
    one.stacks.push_back(stack);
    set.AddAll(*Allowed(one));
  }
  return set;
}

TokenSet TokenMasks::OfText(const GrammarState& state, uint64_t room) const {
  TokenSet set = trie_->plain[std::min<uint64_t>(room, trie_->plain.size() - 1)];
  Walk(trie_->rest, 0, trie_->rest.size(), state, &set);
  AddMarkers(state, &set);
  return set;
}

// Only what begins as the marker goes on is another than after `base`.
TokenSet TokenMasks::OfLead(const GrammarState& state, const GrammarState& base) {
  TokenSet set = *Allowed(base);
  const std::vector<TokenTrie::Node>& nodes = trie_->all;
  GrammarState after, base_after;
  for (size_t i = 0; i < nodes.size(); i = nodes[i].skip) {
    grammar_->Next(state, nodes[i].byte, &after);
    grammar_->Next(base, nodes[i].byte, &base_after);
    if (after == base_after) continue;
    const size_t skip = nodes[i].skip;
    const size_t end = skip < nodes.size() ? nodes[skip].tokens : trie_->all_ids;
    for (size_t t = nodes[i].tokens; t < end; ++t) set.Remove(trie_->ids[t]);
    Walk(nodes, i, skip, state, &set);
  }
  set.Remove(trie_->dsml_id);
  set.Remove(trie_->eos_id);
  AddMarkers(state, &set);
  return set;
}

TokenSet TokenMasks::Compute(const GrammarState& state) {
  if (state.stacks.size() != 1) return OfReadings(state);
  uint64_t room = 0;
  if (grammar_->PlainText(state, &room)) return OfText(state, room);
  GrammarState base;
  if (grammar_->WithoutLead(state, &base)) return OfLead(state, base);
  TokenSet set(trie_->vocab);
  Walk(trie_->all, 0, trie_->all.size(), state, &set);
  AddMarkers(state, &set);
  return set;
}

std::shared_ptr<const TokenSet> TokenMasks::Allowed(const GrammarState& state) {
  const GrammarState canonical = grammar_->Canonical(state, trie_->longest);
  std::string key = KeyOf(canonical);
  {
    absl::MutexLock lock(&mutex_);
    const auto known = by_state_.find(key);
    if (known != by_state_.end()) {
      kept_.splice(kept_.begin(), kept_, known->second);
      return known->second->set;
    }
  }
  auto set = std::make_shared<const TokenSet>(Compute(canonical));
  absl::MutexLock lock(&mutex_);
  if (by_state_.count(key) != 0) return set;
  kept_.push_front({key, set});
  by_state_[std::move(key)] = kept_.begin();
  if (kept_.size() > kMasksKept) {
    by_state_.erase(kept_.back().key);
    kept_.pop_back();
  }
  return set;
}

bool TokenMasks::Advance(int32_t id, GrammarState* state) const {
  const std::vector<Symbol> symbols = trie_->SymbolsOf(id);
  GrammarState after;
  for (const Symbol symbol : symbols) {
    if (!grammar_->Next(*state, symbol, &after)) return false;
    std::swap(*state, after);
  }
  return !symbols.empty();
}

absl::StatusOr<std::shared_ptr<const TokenSet>> AnswerConstraint::Allowed(
    absl::Span<const int32_t> history) {
  if (history.size() < begin_) {
    return absl::InternalError(fmt::format(
        "a constraint of token {} on is asked about a sequence of {}", begin_, history.size()));
  }
  const absl::Span<const int32_t> answer = history.subspan(begin_);
  size_t same = 0;
  while (same < std::min(answer.size(), read_.size()) && answer[same] == read_[same]) ++same;
  if (read_.size() - same < states_.size()) {
    states_.resize(states_.size() - (read_.size() - same));
  } else {
    states_.assign(1, masks_->grammar().Start());
    same = 0;
  }
  read_.resize(same);
  for (size_t i = same; i < answer.size(); ++i) {
    GrammarState state = states_.back();
    if (!masks_->Advance(answer[i], &state)) {
      return absl::InternalError(
          fmt::format("token {} at position {} is none that the grammar of the answer allows there",
                      answer[i], begin_ + i));
    }
    if (states_.size() == kStatesKept) states_.erase(states_.begin());
    states_.push_back(std::move(state));
    read_.push_back(answer[i]);
  }
  if (masks_->grammar().Ended(states_.back())) return std::shared_ptr<const TokenSet>();
  return masks_->Allowed(states_.back());
}

}  // namespace reprise::engine
