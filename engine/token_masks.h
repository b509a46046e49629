// Which tokens a grammar allows next: a trie of the vocabulary's bytes is walked against the
// automaton, so that a token may begin and end anywhere, also inside a character or a tag.
#pragma once

#include <cstdint>
#include <list>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/types/span.h"
#include "engine/grammar.h"
#include "engine/tokenizer.h"

namespace reprise::engine {

// Masks of one grammar that are kept; the least recently used go.
inline constexpr size_t kMasksKept = 512;

struct TokenSet {
  std::vector<uint64_t> bits;  // [vocabulary]
  int64_t count = 0;

  explicit TokenSet(size_t vocab) : bits((vocab + 63) / 64) {}
  bool Has(int32_t id) const {
    const auto at = static_cast<size_t>(id);
    return (bits[at / 64] >> (at % 64) & 1) != 0;
  }
  void Add(int32_t id) {
    const auto at = static_cast<size_t>(id);
    count += static_cast<int64_t>(~bits[at / 64] >> (at % 64) & 1);
    bits[at / 64] |= uint64_t{1} << (at % 64);
  }
  void Remove(int32_t id) {
    const auto at = static_cast<size_t>(id);
    count -= static_cast<int64_t>(bits[at / 64] >> (at % 64) & 1);
    bits[at / 64] &= ~(uint64_t{1} << (at % 64));
  }
  void AddAll(const TokenSet& other);
};

// The vocabulary by bytes. Immutable, thread-safe.
class TokenTrie {
 public:
  // `vocab_size`: number of logits. FAILED_PRECONDITION when the tokenizer has no marker tokens, or
  // no token for some byte.
  static absl::StatusOr<std::shared_ptr<const TokenTrie>> Make(const Tokenizer& tokenizer,
                                                               int32_t vocab_size);

  // In the order of a walk: a node's subtree follows it, up to `skip`.
  struct Node {
    uint32_t skip = 0;
    uint32_t tokens = 0, tokens_end = 0;  // in ids
    uint16_t depth = 0;                   // bytes above it
    uint8_t byte = 0;
  };
  // Tokens of whole printable characters, as AnswerGrammar::PlainText has them, are not in `rest`
  // but in plain[n], of all that have up to n such characters; the last has them all. The markers,
  // and tokens without bytes, are in none.
  std::vector<Node> all, rest;
  std::vector<int32_t> ids;
  size_t all_ids = 0;  // the first so many are of `all`
  std::vector<TokenSet> plain;
  uint64_t longest = 0;  // bytes of a token
  int32_t dsml_id = -1, eos_id = -1;
  size_t vocab = 0;

  std::vector<Symbol> SymbolsOf(int32_t id) const;

 private:
  std::vector<std::string> bytes_;  // [vocabulary]
};

// The masks of one grammar over one vocabulary. Thread-safe.
class TokenMasks {
 public:
  TokenMasks(std::shared_ptr<const AnswerGrammar> grammar, std::shared_ptr<const TokenTrie> trie)
      : grammar_(std::move(grammar)), trie_(std::move(trie)) {}

  // Never empty for a state that tokens led to, unless it has ended.
  std::shared_ptr<const TokenSet> Allowed(const GrammarState& state);
  // The state after a token; false when it is not allowed.
  bool Advance(int32_t id, GrammarState* state) const;
  const AnswerGrammar& grammar() const { return *grammar_; }

 private:
  // How a set is made: from the readings of a state that has several, from what is the same in all
  // free text, or from the set of the state `base` of WithoutLead; else the whole trie is walked.
  TokenSet OfReadings(const GrammarState& state);
  TokenSet OfText(const GrammarState& state, uint64_t room) const;
  TokenSet OfLead(const GrammarState& state, const GrammarState& base);

  TokenSet Compute(const GrammarState& state);
  // Adds what is read of the subtrees from `begin` to `end`.
  void Walk(const std::vector<TokenTrie::Node>& nodes, size_t begin, size_t end,
            const GrammarState& state, TokenSet* set) const;
  void AddMarkers(const GrammarState& state, TokenSet* set) const;

  const std::shared_ptr<const AnswerGrammar> grammar_;
  const std::shared_ptr<const TokenTrie> trie_;

  struct Entry {
    std::string key;
    std::shared_ptr<const TokenSet> set;
  };
  absl::Mutex mutex_;
  std::list<Entry> kept_ ABSL_GUARDED_BY(mutex_);  // the most recently used first
  std::unordered_map<std::string, std::list<Entry>::iterator> by_state_ ABSL_GUARDED_BY(mutex_);
};

// What one answer may go on with. Its state follows from the tokens that it is asked about: those
// that it knows are not read twice, and where they differ from what it was asked before (a guess
// that was wrong) it goes back. One thread at a time.
class AnswerConstraint {
 public:
  // The answer's first token is history[begin].
  AnswerConstraint(std::shared_ptr<TokenMasks> masks, size_t begin)
      : masks_(std::move(masks)), begin_(begin), states_{masks_->grammar().Start()} {}

  size_t begin() const { return begin_; }
  // What may follow `history`; nullptr: anything, because the answer has ended. INTERNAL when the
  // answer in it is none of the grammar.
  absl::StatusOr<std::shared_ptr<const TokenSet>> Allowed(absl::Span<const int32_t> history);

 private:
  const std::shared_ptr<TokenMasks> masks_;
  const size_t begin_;
  std::vector<int32_t> read_;         // tokens of the answer
  std::vector<GrammarState> states_;  // after the newest of them, the last after all
};

}  // namespace reprise::engine
