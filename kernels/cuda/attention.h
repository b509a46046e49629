// Attention over paged key-value entries on the device: the window of each token and, beside it,
// the compressed entries that it sees, all of them (HCA) or those that the indexer selected (CSA);
// sinks; the inverse rotation of the output. See kernels/cpu/attention.h and README.md.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "absl/status/status.h"
#include "kernels/cuda/paged.h"

namespace reprise::kernels::cuda {

// A token that attends. The pass has its sequence's tokens from position `start` on, in rows
// [first_row, ...) of `keys`; the window's tokens before lie in the ring.
struct AttendToken {
  int64_t position = 0;
  int64_t start = 0;
  int32_t sequence = 0;
  int32_t first_row = 0;
};

// Pointers are of the device.
struct AttendParams {
  const float* q = nullptr;             // [tokens, heads, dim], normed and rotated
  const AttendToken* tokens = nullptr;  // [count]
  const float* keys = nullptr;  // [rows, dim], entries of the pass as FinishEntries left them
  PagedRows window;             // ring
  PagedRows entries;            // compressed; `ratio` 0: none
  // [count, top_k]: block numbers ascending, -1 behind the last; nullptr: every visible block, as
  // for a token that sees no more than top_k of them.
  const int32_t* selected = nullptr;
  const float* sinks = nullptr;   // [heads]
  const float* angles = nullptr;  // [count, 2, rope / 2]
  float* out = nullptr;           // [count, heads, dim], rotated back
  int64_t count = 0, heads = 0;
  int64_t window_tokens = 0;
  int64_t ratio = 0, top_k = 0;
  int dim = 0, rope = 0;
  float scale = 1.0f;
  // Reference numerics: probabilities relative to the largest logit are rounded to bfloat16 for the
  // weighted sum, the output before and behind the rotation.
  bool to_bf16 = false;
};

// Queues it on `stream`. INVALID_ARGUMENT for more than 512 channels or a number of them that is no
// multiple of 8; other errors are of the launch.
absl::Status Attend(const AttendParams& params, cudaStream_t stream);

}  // namespace reprise::kernels::cuda
