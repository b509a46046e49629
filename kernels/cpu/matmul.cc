// Matrix products over the dot product tiles.
#include "kernels/cpu/matmul.h"

namespace reprise::kernels::cpu {

void Matmul(const float* x, int64_t x_stride, int64_t x_rows, const Weight& w, int64_t begin, int64_t end, float* y,
            int64_t y_stride) {
  internal::ActiveKernels().matmul(x, x_stride, x_rows, w, begin, end, y, y_stride);
}

void CopyRow(const Weight& w, int64_t row, float* out) { internal::ActiveKernels().copy_row(w, row, out); }

}  // namespace reprise::kernels::cpu
