// One tile of a product: kOutTile rows of the weight against kTokens rows of the input. Both are
// widened to float32 in shared memory, kColumns columns at a time; a thread keeps eight partial
// sums of each of its products, column k in sum k mod 8, and adds them at the end in one fixed
// tree.
#pragma once

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/matmul.h"
#include "kernels/formats.h"

namespace reprise::kernels::cuda {

inline constexpr int kMatmulThreads = 128;
inline constexpr int kOutTile = 32;
inline constexpr int kColumns = 32;  // divides the columns that share a scale
inline constexpr int kLanes = 8;
inline constexpr int kLoadsARow = kColumns / kLanes;
// A row of 36 floats is 9 times 16 bytes: reads of 16 bytes of 8 rows one below the other meet
// different banks.
inline constexpr int kStride = kColumns + 4;
static_assert(kOutTile * kLoadsARow == kMatmulThreads, "a thread loads one part of a weight's row");
static_assert(kFp8ScaleBlock % kColumns == 0 && kFp4ScaleBlock % kColumns == 0,
              "one scale serves what a thread loads");

template <int kTokens>
struct MatmulPlan {
  float w[kOutTile][kStride];
  float x[kTokens][kStride];
  int64_t row[kTokens];  // of the input; -1: none
};

// Eight elements of row `at` of the stored matrix from column k on, widened; 0 behind the last.
__device__ inline void WidenEight(const Weight& w, int64_t at, int64_t k, float* out) {
  const int64_t cols = w.cols;
  const int count = cols - k < kLanes ? static_cast<int>(cols - k) : kLanes;
  for (int i = 0; i < kLanes; ++i) out[i] = 0.0f;
  if (count <= 0) return;
  const bool whole = cols % kLanes == 0;
  switch (w.type) {
    case WeightType::kF32: {
      const float* from = static_cast<const float*>(w.data) + at * cols + k;
      for (int i = 0; i < count; ++i) out[i] = from[i];
      return;
    }
    case WeightType::kBf16: {
      const uint16_t* from = static_cast<const uint16_t*>(w.data) + at * cols + k;
      for (int i = 0; i < count; ++i) out[i] = WidenBf16(from[i]);
      return;
    }
    case WeightType::kFp8: {
      const uint8_t* from = static_cast<const uint8_t*>(w.data) + at * cols + k;
      const float scale =
          WidenE8m0(w.scales[at / kFp8ScaleBlock * w.scale_cols + k / kFp8ScaleBlock]);
      if (whole) {
        const uint64_t codes = *reinterpret_cast<const uint64_t*>(from);
        for (int i = 0; i < kLanes; ++i)
          out[i] = WidenE4m3(static_cast<uint8_t>(codes >> (8 * i))) * scale;
      } else {
        for (int i = 0; i < count; ++i) out[i] = WidenE4m3(from[i]) * scale;
      }
      return;
    }
    case WeightType::kFp4: {
      const uint8_t* from = static_cast<const uint8_t*>(w.data) + (at * cols + k) / 2;
      const uint32_t codes = *reinterpret_cast<const uint32_t*>(from);
      const float scale = WidenE8m0(w.scales[at * w.scale_cols + k / kFp4ScaleBlock]);
      for (int i = 0; i < kLanes; ++i)
        out[i] = WidenE2m1(static_cast<uint8_t>(codes >> (4 * i) & 15)) * scale;
      return;
    }
  }
}

// Columns [k, k + 8) of the input's row, of which columns [0, cols) are read from `first` on.
__device__ inline void LoadEight(const MatmulInput& in, int64_t row, int64_t first, int64_t cols,
                                 int64_t k, float* out) {
  for (int i = 0; i < kLanes; ++i) {
    const int64_t at = first + k + i;
    if (row < 0 || k + i >= cols) {
      out[i] = 0.0f;
    } else if (in.codes == nullptr) {
      out[i] = in.x[row * in.stride + at];
    } else {
      out[i] = WidenE4m3(in.codes[row * in.stride + at]) *
               WidenE8m0(in.scales[row * in.scale_stride + at / kFp8ScaleBlock]);
    }
  }
}

__device__ inline float AddLanes(const float* lane) {
  const float even = (lane[0] + lane[4]) + (lane[2] + lane[6]);
  const float odd = (lane[1] + lane[5]) + (lane[3] + lane[7]);
  return even + odd;
}

// Where a tile reads and writes.
struct MatmulTile {
  int64_t first_column = 0;  // of the input
  int64_t first_out = 0;     // row of w
  float* y = nullptr;        // row 0, column 0 of w's outputs
  int64_t y_stride = 0;
  int rows = 0;  // at most kTokens
  bool to_bf16 = false;
};

// A thread computes kMicro outputs of kMicro tokens. REQUIRES: kMatmulThreads threads, all of which
// call it, and plan.row is written.
template <int kTokens, int kMicro>
__device__ void RunTile(const MatmulInput& in, const Weight& w, const MatmulTile& tile,
                        MatmulPlan<kTokens>& plan) {
  constexpr int kOutThreads = kOutTile / kMicro, kTokenThreads = kTokens / kMicro;
  static_assert(kOutThreads * kTokenThreads == kMatmulThreads, "each product has one thread");
  const int thread = static_cast<int>(threadIdx.x);
  const int out = thread % kOutThreads, token = thread / kOutThreads;
  float sums[kMicro][kMicro][kLanes] = {};
  for (int64_t k = 0; k < w.cols; k += kColumns) {
    __syncthreads();
    const int part = thread % kLoadsARow * kLanes, w_row = thread / kLoadsARow;
    if (tile.first_out + w_row < w.rows) {
      WidenEight(w, w.first_row + tile.first_out + w_row, k + part, &plan.w[w_row][part]);
    } else {
      for (int i = 0; i < kLanes; ++i) plan.w[w_row][part + i] = 0.0f;
    }
    if (w_row < kTokens)
      LoadEight(in, plan.row[w_row], tile.first_column, w.cols, k + part, &plan.x[w_row][part]);
    __syncthreads();
    for (int step = 0; step < kColumns; step += kLanes) {
#pragma unroll
      for (int i = 0; i < kMicro; ++i) {
#pragma unroll
        for (int j = 0; j < kMicro; ++j) {
          const float* a = &plan.w[out + i * kOutThreads][step];
          const float* b = &plan.x[token + j * kTokenThreads][step];
#pragma unroll
          for (int lane = 0; lane < kLanes; ++lane)
            sums[i][j][lane] = fmaf(a[lane], b[lane], sums[i][j][lane]);
        }
      }
    }
  }
#pragma unroll
  for (int i = 0; i < kMicro; ++i) {
#pragma unroll
    for (int j = 0; j < kMicro; ++j) {
      const int64_t column = tile.first_out + out + i * kOutThreads;
      const int row = token + j * kTokenThreads;
      if (column >= w.rows || row >= tile.rows) continue;
      const float sum = AddLanes(sums[i][j]);
      tile.y[row * tile.y_stride + column] = tile.to_bf16 ? RoundBf16(sum) : sum;
    }
  }
}

}  // namespace reprise::kernels::cuda
