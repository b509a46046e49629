// Compressed entries on the device: a block of tokens pooled channel by channel with a softmax over
// its rows, then normed, rotated, rounded and written into its page; and the rows that later blocks
// need, kept in rings. See kernels/cpu/compressor.h.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "absl/status/status.h"
#include "kernels/cuda/paged.h"

namespace reprise::kernels::cuda {

// A block that ends inside the pass. The pass has the sequence's tokens from position `start` on,
// in rows [first_row, ...); tokens before lie in the rings.
struct CompressJob {
  int64_t block = 0;  // of tokens [block * ratio, (block + 1) * ratio)
  int64_t start = 0;
  int32_t sequence = 0;
  int32_t first_row = 0;
};

// Pointers are of the device.
struct CompressParams {
  const CompressJob* jobs = nullptr;  // [count]
  const float* values = nullptr;      // [rows, columns] of the pass
  const float* gates = nullptr;       // [rows, columns], position bias added
  PagedRows tail_values, tail_gates;  // rings of float32 rows [columns]
  const float* norm = nullptr;        // [width]
  const float* angles = nullptr;      // [count, 2, rope / 2], of each block's first token
  PagedRows out;                      // entry or key `block`
  int64_t count = 0;
  int ratio = 0, width = 0, rope = 0;
  // Rows are two halves of `width` channels, low for the next block, high for their own.
  bool overlaps = false;
  bool index = false;      // indexer keys: Hadamard and FP4; entries: FP8 but the rotary channels
  bool quantised = false;  // rounded at all; always when packed
  float eps = 1e-6f;
};

struct KeepTailsParams {
  float* gates = nullptr;              // [rows, columns]: gets its position's bias added
  const float* values = nullptr;       // [rows, columns]
  const float* bias = nullptr;         // [ratio, columns]
  const int32_t* sequences = nullptr;  // [rows]
  const int64_t* positions = nullptr;  // [rows]
  const uint8_t* keep = nullptr;  // [rows]: 1 for the newest of a sequence, as many as rings hold
  PagedRows tail_values, tail_gates;
  int64_t rows = 0;
  int ratio = 0, columns = 0;
};

// Each queues its work on `stream`. INVALID_ARGUMENT for more than 512 channels, and for quantised
// indexer keys whose channels are no power of two from 32 on; other errors are of the launch.
absl::Status AddPositionBias(const KeepTailsParams& params, cudaStream_t stream);
absl::Status Compress(const CompressParams& params, cudaStream_t stream);
// After Compress, which reads what the rings held before. Rows of `keep` only.
absl::Status KeepTails(const KeepTailsParams& params, cudaStream_t stream);

}  // namespace reprise::kernels::cuda
