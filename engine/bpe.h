// Byte-pair merging over token ids. Immutable after construction.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"

namespace reprise::engine {

class Bpe {
 public:
  // `byte_ids`: token of each single byte.
  explicit Bpe(std::vector<int32_t> byte_ids) : byte_ids_(std::move(byte_ids)) {}
  // The merge of `left` and `right` into `merged`; merges are added in the order of their rank.
  void AddMerge(int32_t left, int32_t right, int32_t merged);
  // Appends the tokens of one fragment: always the adjacent pair of lowest rank next, leftmost
  // first.
  void Encode(std::string_view fragment, std::vector<int32_t>* ids) const;

 private:
  struct Merge {
    int32_t rank;
    int32_t merged;
  };
  static uint64_t Pair(int32_t left, int32_t right) {
    return (static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32) |
           static_cast<uint32_t>(right);
  }
  const Merge* Find(int32_t left, int32_t right) const;

  std::vector<int32_t> byte_ids_;
  absl::flat_hash_map<uint64_t, Merge> merges_;
};

}  // namespace reprise::engine
