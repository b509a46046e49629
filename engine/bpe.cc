#include "engine/bpe.h"

#include <queue>

namespace reprise::engine {

void Bpe::AddMerge(int32_t left, int32_t right, int32_t merged) {
  merges_.try_emplace(Pair(left, right), Merge{static_cast<int32_t>(merges_.size()), merged});
}

const Bpe::Merge* Bpe::Find(int32_t left, int32_t right) const {
  auto it = merges_.find(Pair(left, right));
  return it == merges_.end() ? nullptr : &it->second;
}

void Bpe::Encode(std::string_view fragment, std::vector<int32_t>* ids) const {
  // A doubly linked list of symbols and a heap of candidate merges; a candidate whose symbols have
  // changed since is skipped when it comes up.
  struct Symbol {
    int32_t id;
    int32_t prev, next;
  };
  struct Candidate {
    int32_t rank, at, left, right, merged;
    bool operator<(const Candidate& other) const {
      return rank != other.rank ? rank > other.rank : at > other.at;
    }
  };
  const auto n = static_cast<int32_t>(fragment.size());
  std::vector<Symbol> symbols(fragment.size());
  for (int32_t i = 0; i < n; ++i) {
    symbols[static_cast<size_t>(i)] = {
        byte_ids_[static_cast<unsigned char>(fragment[static_cast<size_t>(i)])], i - 1,
        i + 1 < n ? i + 1 : -1};
  }
  std::priority_queue<Candidate> heap;
  auto consider = [&](int32_t at) {
    if (at < 0) return;
    const Symbol& left = symbols[static_cast<size_t>(at)];
    if (left.next < 0) return;
    const Symbol& right = symbols[static_cast<size_t>(left.next)];
    if (const Merge* merge = Find(left.id, right.id))
      heap.push({merge->rank, at, left.id, right.id, merge->merged});
  };
  for (int32_t i = 0; i + 1 < n; ++i) consider(i);
  while (!heap.empty()) {
    const Candidate best = heap.top();
    heap.pop();
    Symbol& left = symbols[static_cast<size_t>(best.at)];
    if (left.id != best.left || left.next < 0) continue;
    Symbol& right = symbols[static_cast<size_t>(left.next)];
    if (right.id != best.right) continue;
    left.id = best.merged;
    right.id = -1;
    left.next = right.next;
    if (right.next >= 0) symbols[static_cast<size_t>(right.next)].prev = best.at;
    consider(left.prev);
    consider(best.at);
  }
  for (int32_t i = n > 0 ? 0 : -1; i >= 0; i = symbols[static_cast<size_t>(i)].next) {
    ids->push_back(symbols[static_cast<size_t>(i)].id);
  }
}

}  // namespace reprise::engine
