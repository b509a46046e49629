// Which tensors a DeepSeek-V4 of a given config has: official names, logical shapes, and what each
// may be stored as. Source: the tensor tables of the published checkpoints.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "engine/config.h"

namespace reprise::engine {

// One F8_E8M0 scale stands for a block of so many rows and columns of an FP8 matrix, or for so many
// consecutive columns of one row of an FP4 matrix.
inline constexpr int64_t kFp8Block = 128;
inline constexpr int64_t kFp4Block = 32;

struct TensorSpec {
  enum class Kind {
    kFloat,   // BF16 or F32
    kTable,   // I64
    kLinear,  // ends in ".weight"; BF16, F32, or F8_E4M3 with a scale
    kExpert,  // as kLinear, or I8: two FP4 values a byte, with a scale
  };
  std::string name;
  std::vector<int64_t> shape;  // of the values, not of packed bytes
  Kind kind = Kind::kFloat;
};

// In the order of the forward pass; without MTP blocks.
std::vector<TensorSpec> TensorInventory(const ModelConfig& config);
// Of MTP block `block`, prefix "mtp.<block>.".
std::vector<TensorSpec> MtpInventory(const ModelConfig& config, int64_t block);

// "x.scale" for the matrix "x.weight".
std::string ScaleName(std::string_view weight);

}  // namespace reprise::engine
