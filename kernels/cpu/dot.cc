// Portable dot products and weighted sums in the lane order that dot.h fixes, and the choice between the paths.
#include "kernels/cpu/dot.h"

#include <bit>
#include <cmath>

namespace reprise::kernels::cpu {
namespace {

constexpr int kLanes = 8;

float ReduceLanes(const float* lane) {
  const float even = (lane[0] + lane[4]) + (lane[2] + lane[6]);
  const float odd = (lane[1] + lane[5]) + (lane[3] + lane[7]);
  return even + odd;
}

float Widen(uint16_t bits) { return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16); }

template <typename Load>
float DotWith(const float* x, const Load& load, int64_t n) {
  float lane[kLanes] = {};
  for (int64_t k = 0; k < n; ++k) lane[k % kLanes] = std::fma(load(k), x[k], lane[k % kLanes]);
  return ReduceLanes(lane);
}

float PortableDot(const float* a, const float* b, int64_t n) {
  return DotWith(a, [b](int64_t k) { return b[k]; }, n);
}

void PortableMatmul(const float* x, int64_t x_stride, int64_t x_rows, const Weight& w, int64_t begin, int64_t end,
                    float* y, int64_t y_stride) {
  for (int64_t i = begin; i < end; ++i) {
    for (int64_t t = 0; t < x_rows; ++t) {
      const float* row = x + t * x_stride;
      float& out = y[t * y_stride + i];
      if (w.type == WeightType::kBf16) {
        const uint16_t* bits = static_cast<const uint16_t*>(w.data) + i * w.cols;
        out = DotWith(row, [bits](int64_t k) { return Widen(bits[k]); }, w.cols);
      } else {
        out = PortableDot(row, static_cast<const float*>(w.data) + i * w.cols, w.cols);
      }
    }
  }
}

void PortableDotRows(const float* x, int64_t x_stride, int64_t x_rows, const float* const* rows, int64_t count,
                     int64_t n, float* out, int64_t out_stride) {
  for (int64_t i = 0; i < count; ++i) {
    for (int64_t t = 0; t < x_rows; ++t) {
      out[t * out_stride + i] = PortableDot(x + t * x_stride, rows[i], n);
    }
  }
}

void PortableWeightedRows(const float* p, int64_t heads, const float* const* rows, int64_t count, int64_t n,
                          float* out) {
  for (int64_t h = 0; h < heads; ++h) {
    for (int64_t c = 0; c < n; ++c) {
      float sum = 0;
      for (int64_t j = 0; j < count; ++j) sum = std::fma(p[h * count + j], rows[j][c], sum);
      out[h * n + c] = sum;
    }
  }
}

}  // namespace

namespace internal {

const DotKernels& PortableKernels() {
  static constexpr DotKernels kKernels = {PortableMatmul, PortableDotRows, PortableWeightedRows, PortableDot};
  return kKernels;
}

const DotKernels& ActiveKernels() {
  static const DotKernels& active = Avx2Kernels() != nullptr ? *Avx2Kernels() : PortableKernels();
  return active;
}

}  // namespace internal

float Dot(const float* a, const float* b, int64_t n) { return internal::ActiveKernels().dot(a, b, n); }

void DotRows(const float* x, int64_t x_stride, int64_t x_rows, const float* const* rows, int64_t count, int64_t n,
             float* out, int64_t out_stride) {
  internal::ActiveKernels().dot_rows(x, x_stride, x_rows, rows, count, n, out, out_stride);
}

void WeightedRows(const float* p, int64_t heads, const float* const* rows, int64_t count, int64_t n, float* out) {
  internal::ActiveKernels().weighted_rows(p, heads, rows, count, n, out);
}

}  // namespace reprise::kernels::cpu
