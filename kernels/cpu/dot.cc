// Portable dot products and weighted sums in the lane order that dot.h fixes, and the choice between the paths.
#include "kernels/cpu/dot.h"

#include <cmath>

#include "kernels/formats.h"

namespace reprise::kernels::cpu {
namespace {

constexpr int kLanes = 8;

float ReduceLanes(const float* lane) {
  const float even = (lane[0] + lane[4]) + (lane[2] + lane[6]);
  const float odd = (lane[1] + lane[5]) + (lane[3] + lane[7]);
  return even + odd;
}

template <typename Load>
float DotWith(const float* x, const Load& load, int64_t n) {
  float lane[kLanes] = {};
  for (int64_t k = 0; k < n; ++k) lane[k % kLanes] = std::fma(load(k), x[k], lane[k % kLanes]);
  return ReduceLanes(lane);
}

float PortableDot(const float* a, const float* b, int64_t n) {
  return DotWith(a, [b](int64_t k) { return b[k]; }, n);
}

// fn(load), where load(k) is element k of row `row` of `w`.
template <typename Fn>
auto WithRow(const Weight& w, int64_t row, const Fn& fn) {
  const int64_t at = w.first_row + row;
  switch (w.type) {
    case WeightType::kBf16: {
      const uint16_t* bits = static_cast<const uint16_t*>(w.data) + at * w.cols;
      return fn([bits](int64_t k) { return WidenBf16(bits[k]); });
    }
    case WeightType::kFp8: {
      const uint8_t* codes = static_cast<const uint8_t*>(w.data) + at * w.cols;
      const uint8_t* scales = w.scales + at / kFp8ScaleBlock * w.scale_cols;
      return fn([codes, scales](int64_t k) { return WidenE4m3(codes[k]) * WidenE8m0(scales[k / kFp8ScaleBlock]); });
    }
    case WeightType::kFp4: {
      const uint8_t* codes = static_cast<const uint8_t*>(w.data) + at * (w.cols / 2);
      const uint8_t* scales = w.scales + at * w.scale_cols;
      return fn([codes, scales](int64_t k) {
        const uint8_t code = static_cast<uint8_t>(k % 2 == 0 ? codes[k / 2] & 15 : codes[k / 2] >> 4);
        return WidenE2m1(code) * WidenE8m0(scales[k / kFp4ScaleBlock]);
      });
    }
    case WeightType::kF32:
      break;
  }
  const float* values = static_cast<const float*>(w.data) + at * w.cols;
  return fn([values](int64_t k) { return values[k]; });
}

void PortableCopyRow(const Weight& w, int64_t row, float* out) {
  WithRow(w, row, [&](const auto& load) {
    for (int64_t k = 0; k < w.cols; ++k) out[k] = load(k);
  });
}

void PortableMatmul(const float* x, int64_t x_stride, int64_t x_rows, const Weight& w, int64_t begin, int64_t end,
                    float* y, int64_t y_stride) {
  for (int64_t i = begin; i < end; ++i) {
    WithRow(w, i, [&](const auto& load) {
      for (int64_t t = 0; t < x_rows; ++t) y[t * y_stride + i] = DotWith(x + t * x_stride, load, w.cols);
    });
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
  static constexpr DotKernels kKernels = {PortableMatmul, PortableCopyRow, PortableDotRows, PortableWeightedRows, PortableDot};
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
