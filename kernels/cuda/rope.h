// Rotary embedding on the device, and what is done with it before attention: query heads normed and
// rotated, key-value entries rotated, rounded and written where they are kept.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "absl/status/status.h"
#include "kernels/cuda/paged.h"

namespace reprise::kernels::cuda {

inline constexpr int kHeadDimMax = 512;

// Pointers are of the device.
struct RopeAnglesParams {
  const int64_t* positions = nullptr;  // [rows]
  const float* frequencies = nullptr;  // [pairs]
  float* angles = nullptr;             // [rows, 2, pairs]: cos, sin of position * frequency
  int64_t rows = 0;
  int pairs = 0;
};

struct FinishQueriesParams {
  float* q = nullptr;             // [rows, heads, dim], in place
  const float* angles = nullptr;  // [rows, 2, rope / 2]
  int64_t rows = 0, heads = 0;
  int dim = 0, rope = 0;
  float eps = 1e-6f;
  bool to_bf16 = false;  // rounded behind the norm and behind the rotation
};

struct FinishEntriesParams {
  float* entries = nullptr;       // [rows, dim], normed; in place: what is written, as float32
  const float* angles = nullptr;  // [rows, 2, rope / 2]
  // Nowhere when `sequences` is nullptr: a pass whose rows a ring cannot hold keeps them later.
  PagedRows ring;
  const int32_t* sequences = nullptr;  // [rows]
  const int64_t* positions = nullptr;  // [rows]
  int64_t rows = 0;
  int dim = 0, rope = 0;
  bool quantised = false;  // to bfloat16, and FP8 but the rotary channels; always when packed
};

// Each queues its work on `stream`. INVALID_ARGUMENT for more channels than kHeadDimMax, or rotary
// channels that are odd or more than all; other errors are of the launch.
absl::Status RopeAngles(const RopeAnglesParams& params, cudaStream_t stream);
absl::Status FinishQueries(const FinishQueriesParams& params, cudaStream_t stream);
absl::Status FinishEntries(const FinishEntriesParams& params, cudaStream_t stream);

}  // namespace reprise::kernels::cuda
