// Which tensors a DeepSeek-V4 of a given config has: official names, shapes, and what each may be
// stored as. Source: the tensor tables of the published checkpoints. MTP tensors (prefix "mtp.")
// are not part of it.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "engine/config.h"

namespace reprise::engine {

struct TensorSpec {
  enum class Kind { kFloat, kTable };  // BF16 or F32; I64
  std::string name;
  std::vector<int64_t> shape;
  Kind kind = Kind::kFloat;
};

// In the order of the forward pass.
std::vector<TensorSpec> TensorInventory(const ModelConfig& config);

}  // namespace reprise::engine
