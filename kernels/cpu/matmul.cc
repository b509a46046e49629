// Matrix products over the dot product tiles.
#include "kernels/cpu/matmul.h"

#include <bit>
#include <cstring>

namespace reprise::kernels::cpu {

void Matmul(const float* x, int64_t x_stride, int64_t x_rows, const Weight& w, int64_t begin, int64_t end, float* y,
            int64_t y_stride) {
  internal::ActiveKernels().matmul(x, x_stride, x_rows, w, begin, end, y, y_stride);
}

void CopyRow(const Weight& w, int64_t row, float* out) {
  if (w.type == WeightType::kF32) {
    std::memcpy(out, static_cast<const float*>(w.data) + row * w.cols, static_cast<size_t>(w.cols) * sizeof(float));
    return;
  }
  const uint16_t* bits = static_cast<const uint16_t*>(w.data) + row * w.cols;
  for (int64_t i = 0; i < w.cols; ++i) out[i] = std::bit_cast<float>(static_cast<uint32_t>(bits[i]) << 16);
}

}  // namespace reprise::kernels::cpu
