// Lightning indexer on the device: query heads as they are compared, scores of each token's visible
// blocks, and the choice of the best. See kernels/cpu/indexer.h.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "absl/status/status.h"
#include "kernels/cuda/paged.h"

namespace reprise::kernels::cuda {

inline constexpr int kIndexDimMax = 128;

// Pointers are of the device.
struct IndexQueriesParams {
  float* q = nullptr;             // [rows, heads, dim], in place
  float* weights = nullptr;       // [rows, heads], in place: times `factor`
  const float* angles = nullptr;  // [rows, 2, rope / 2]
  int64_t rows = 0, heads = 0;
  int dim = 0, rope = 0;
  float factor = 1.0f;
  bool quantised = false;  // q: bfloat16, Hadamard, FP4; weights: bfloat16
};

struct IndexScoresParams {
  const float* q = nullptr;            // [rows, heads, dim]
  const float* weights = nullptr;      // [rows, heads]
  const int32_t* sequences = nullptr;  // [rows]
  const int64_t* positions = nullptr;  // [rows]
  PagedRows keys;
  // [rows, blocks_max]: of blocks w < (position + 1) / ratio; others are not written.
  float* scores = nullptr;
  int64_t rows = 0, heads = 0, blocks_max = 0;
  int64_t ratio = 4;
  int dim = 0;
  bool to_bf16 = false;  // every dot product, every term and the sum
};

struct SelectParams {
  const float* scores = nullptr;       // [rows, blocks_max]
  const int64_t* positions = nullptr;  // [rows]
  // [rows, top_k]: the blocks of highest score, ascending, equal scores to the lower block, NaN
  // lowest; -1 behind the last where fewer are visible.
  int32_t* selected = nullptr;
  int64_t rows = 0, blocks_max = 0, ratio = 4;
  int top_k = 0;
};

// Each queues its work on `stream`. INVALID_ARGUMENT for shapes that it cannot do; other errors are
// of the launch.
absl::Status IndexQueries(const IndexQueriesParams& params, cudaStream_t stream);
absl::Status IndexScores(const IndexScoresParams& params, cudaStream_t stream);
absl::Status SelectBlocks(const SelectParams& params, cudaStream_t stream);

}  // namespace reprise::kernels::cuda
