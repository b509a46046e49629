// y = x . W^T on the device, with weights kept as they are stored: float32, bfloat16, FP8 with
// block scales, FP4. Elements are widened exactly, scale included, and each product of two rows is
// summed in the order of kernels/cpu/dot.h, so that y is the CPU's bit for bit. See README.md.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "absl/status/status.h"
#include "kernels/weight.h"

namespace reprise::kernels::cuda {

// Rows that products read: float32, or FP8 where `codes` is set. Pointers are of the device.
struct MatmulInput {
  const float* x = nullptr;         // [rows, stride]
  const uint8_t* codes = nullptr;   // [rows, stride] e4m3
  const uint8_t* scales = nullptr;  // [rows, scale_stride], one for 128 columns; with `codes`
  int64_t stride = 0, scale_stride = 0;
};

// `groups` products side by side: group g reads columns [g * w.cols, (g + 1) * w.cols) of x and
// rows [g * out_rows, (g + 1) * out_rows) of w, and writes columns [g * out_rows, ...) of y.
// Weights and scales are of the device; rows of w begin at addresses that are multiples of 16
// bytes, or w.cols is no multiple of 8.
struct MatmulParams {
  MatmulInput in;
  Weight w;            // rows = groups * out_rows
  float* y = nullptr;  // [rows, y_stride]
  int64_t rows = 0, y_stride = 0;
  int64_t groups = 1;
  bool to_bf16 = false;  // y is rounded to bfloat16
};

// Of a row range of one expert; see experts.h.
struct ExpertTile {
  int32_t expert = 0;
  int32_t first = 0;  // place
  int32_t rows = 0;   // 0: no tile
};

// Rows in the order of their experts, each against its expert's matrix.
struct GroupedMatmulParams {
  MatmulInput in;
  const int32_t* row_of = nullptr;    // [places]: the row of `in` at a place; nullptr: the place
  const ExpertTile* tiles = nullptr;  // [tiles_max]
  const void* const* data = nullptr;  // [experts]: as Weight::data
  const uint8_t* const* scales = nullptr;  // [experts]: as Weight::scales
  Weight shape;                            // of every expert's matrix; its pointers are not used
  float* y = nullptr;                      // [places, y_stride]
  int64_t tiles_max = 0, y_stride = 0;
  bool to_bf16 = false;
};

// Rows of one tile of an expert.
inline constexpr int kExpertTileRows = 16;

// Each queues its work on `stream`. INVALID_ARGUMENT for FP4 columns that are no multiple of 32,
// and for groups that do not divide w's rows; other errors are of the launch.
absl::Status Matmul(const MatmulParams& params, cudaStream_t stream);
absl::Status GroupedMatmul(const GroupedMatmulParams& params, cudaStream_t stream);

}  // namespace reprise::kernels::cuda
