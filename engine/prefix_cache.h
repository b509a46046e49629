// States of prompts that were read before, for sequences that begin with the same tokens: a tree
// whose edges are page_tokens tokens. A state shares its pages with the sequence that it was taken
// from and with the states below it. Least recently used states go first.
#pragma once

#include <cstdint>
#include <list>
#include <map>
#include <memory>
#include <optional>
#include <vector>

#include "absl/types/span.h"
#include "engine/kv_state.h"

namespace reprise::engine {

class PrefixCache {
 public:
  // `layout` outlives this. `bytes_max`: of blocks and pages that the states hold; 0 keeps nothing.
  PrefixCache(const KvLayout* layout, int64_t bytes_max);
  ~PrefixCache();

  // The state after the longest known prefix of at most `tokens`; nullptr when there is none. Valid
  // until the next Insert.
  const KvState* Find(absl::Span<const int32_t> tokens);
  // Keeps the state after `tokens`. REQUIRES: tokens.size() is a multiple of page_tokens, above 0.
  void Insert(absl::Span<const int32_t> tokens, const KvState& state);

  int64_t bytes() const;

 private:
  struct Node;
  void Evict();

  const KvLayout* const layout_;
  const int64_t bytes_max_;
  const std::unique_ptr<Node> root_;
  std::list<Node*> by_use_;  // of nodes with a state, the most recently used first
  int64_t nodes_ = 0;        // each stands for one page that its states share
};

}  // namespace reprise::engine
