// The two inner loops under every operation: tiles of dot products, and weighted sums of rows.
//
// Invariant: the result of a dot product depends on its two vectors alone. Element k goes to lane k mod 8, each lane is
// one chain of fused multiply-adds in ascending k, and the lanes are added in one fixed tree. The AVX2 path and the
// portable path follow the same order and give the same bits. FP8 and FP4 elements are widened exactly, scale included,
// before they are multiplied.
#pragma once

#include <cstdint>

#include "kernels/weight.h"

namespace reprise::kernels::cpu {

using kernels::kFp4ScaleBlock;
using kernels::kFp8ScaleBlock;
using kernels::kScaleByteMax;
using kernels::Weight;
using kernels::WeightType;

// sum_k a[k] * b[k], float32.
float Dot(const float* a, const float* b, int64_t n);

// out[t * out_stride + i] = dot(x + t * x_stride, rows[i]) for t in [0, x_rows), i in [0, count); rows are float32.
void DotRows(const float* x, int64_t x_stride, int64_t x_rows, const float* const* rows, int64_t count, int64_t n,
             float* out, int64_t out_stride);

// out[h * n + c] = sum_j p[h * count + j] * rows[j][c], each sum one chain of fused multiply-adds in ascending j.
void WeightedRows(const float* p, int64_t heads, const float* const* rows, int64_t count, int64_t n, float* out);

namespace internal {
// y[t * y_stride + i] = dot(x + t * x_stride, row i) for i in [begin, end) of `w`.
using MatmulFn = void (*)(const float* x, int64_t x_stride, int64_t x_rows, const Weight& w, int64_t begin, int64_t end,
                          float* y, int64_t y_stride);
using DotRowsFn = void (*)(const float* x, int64_t x_stride, int64_t x_rows, const float* const* rows, int64_t count,
                           int64_t n, float* out, int64_t out_stride);
using WeightedRowsFn = void (*)(const float* p, int64_t heads, const float* const* rows, int64_t count, int64_t n,
                                float* out);
using DotFn = float (*)(const float* a, const float* b, int64_t n);

using CopyRowFn = void (*)(const Weight& w, int64_t row, float* out);

struct DotKernels {
  MatmulFn matmul;
  CopyRowFn copy_row;
  DotRowsFn dot_rows;
  WeightedRowsFn weighted_rows;
  DotFn dot;
};
// Null where this machine or this build has no AVX2 with FMA.
const DotKernels* Avx2Kernels();
const DotKernels& PortableKernels();
// What this process uses: chosen once.
const DotKernels& ActiveKernels();
}  // namespace internal

}  // namespace reprise::kernels::cpu
