// y = x . W^T with weights kept as they are stored (float32, bfloat16, FP8, FP4) and widened in registers, or a few rows
// at a time for many inputs.
#pragma once

#include <cstdint>

#include "kernels/cpu/dot.h"

namespace reprise::kernels::cpu {

// y[t * y_stride + i] = dot(x + t * x_stride, w row i) for t in [0, x_rows) and i in [begin, end): callers cut
// [0, w.rows) among threads as they like. x rows have w.cols elements; weights must be aligned to their element.
void Matmul(const float* x, int64_t x_stride, int64_t x_rows, const Weight& w, int64_t begin, int64_t end, float* y,
            int64_t y_stride);

// Copies row `row` of w, widened, to out[w.cols].
void CopyRow(const Weight& w, int64_t row, float* out);

}  // namespace reprise::kernels::cpu
