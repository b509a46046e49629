// AVX2 tiles: several dot products run at once to hide the latency of their chains, each in the
// lane order that dot.h fixes, so a tile's shape never shows in a result. 16 registers: 12 sums, 3
// inputs, 1 weight.
#include "kernels/cpu/dot.h"

#if defined(__x86_64__)
#include <algorithm>
#include <type_traits>
#include <vector>

#include "kernels/cpu/avx2.h"
#include "kernels/cpu/widen_avx2.h"

namespace reprise::kernels::cpu {
namespace {

using internal::Bf16Row;
using internal::Fp4Row;
using internal::Fp8Row;
using internal::kLanes;
using internal::kWidenColumns;
using internal::kWidenVectors;
using internal::ReduceLanes;
using internal::TailMask;

constexpr int kTileInputs = 3;     // x rows in a wide tile
constexpr int kTileWeights = 4;    // weight rows in a wide tile
constexpr int kSingleWeights = 8;  // weight rows in a tile of one x row
// From so many x rows on it pays to widen a bfloat16 row once for all of them.
constexpr int64_t kWidenInputs = 8;
// Floats of a block of x rows and of a panel of weight rows that stay in the first and second
// cache.
constexpr int64_t kInputFloats = 5120, kPanelFloats = 32768;

// How rows of a type become eight floats; LoadTail gives zeros past `left`.
struct F32Elements {
  using Element = float;
  REPRISE_AVX2 static inline __m256 Load(const float* p) { return _mm256_loadu_ps(p); }
  REPRISE_AVX2 static inline __m256 LoadTail(const float* p, int64_t left) {
    return _mm256_maskload_ps(p, TailMask(left));
  }
};

struct Bf16Elements {
  using Element = uint16_t;
  REPRISE_AVX2 static inline __m256 Load(const uint16_t* p) { return Bf16Row::Widen(p); }
  REPRISE_AVX2 static inline __m256 LoadTail(const uint16_t* p, int64_t left) {
    return Bf16Row::WidenTail(p, left);
  }
};

// out[t][b] = dot(x + t * x_stride, rows[b]) for a tile of kB rows and kT inputs. kTail: n is no
// multiple of 8. The loops over a tile are unrolled, so that its sums stay in
// registers.
template <typename Rows, int kB, int kT, bool kTail>
REPRISE_AVX2 inline void TileOf(const float* x, int64_t x_stride,
                                const typename Rows::Element* const* rows, int64_t n, float* out,
                                int64_t out_stride) {
  __m256 sum[kB][kT];
#pragma GCC unroll 8
  for (int b = 0; b < kB; ++b) {
#pragma GCC unroll 4
    for (int t = 0; t < kT; ++t) sum[b][t] = _mm256_setzero_ps();
  }
  int64_t k = 0;
  for (; k + kLanes <= n; k += kLanes) {
    __m256 input[kT];
#pragma GCC unroll 4
    for (int t = 0; t < kT; ++t) input[t] = _mm256_loadu_ps(x + t * x_stride + k);
#pragma GCC unroll 8
    for (int b = 0; b < kB; ++b) {
      const __m256 weight = Rows::Load(rows[b] + k);
#pragma GCC unroll 4
      for (int t = 0; t < kT; ++t) sum[b][t] = _mm256_fmadd_ps(weight, input[t], sum[b][t]);
    }
  }
  if constexpr (kTail) {
    const int64_t left = n - k;
#pragma GCC unroll 8
    for (int b = 0; b < kB; ++b) {
      const __m256 weight = Rows::LoadTail(rows[b] + k, left);
#pragma GCC unroll 4
      for (int t = 0; t < kT; ++t) {
        const __m256 input = F32Elements::LoadTail(x + t * x_stride + k, left);
        sum[b][t] = _mm256_fmadd_ps(weight, input, sum[b][t]);
      }
    }
  }
#pragma GCC unroll 4
  for (int t = 0; t < kT; ++t) {
    float* to = out + t * out_stride;
    if constexpr (kB % 4 == 0) {
#pragma GCC unroll 2
      for (int b = 0; b < kB; b += 4) {
        _mm_storeu_ps(to + b, ReduceLanes(sum[b][t], sum[b + 1][t], sum[b + 2][t], sum[b + 3][t]));
      }
    } else {
#pragma GCC unroll 4
      for (int b = 0; b < kB; ++b) to[b] = ReduceLanes(sum[b][t]);
    }
  }
}

template <typename Rows, int kB, int kT>
REPRISE_AVX2 inline void Tile(const float* x, int64_t x_stride,
                              const typename Rows::Element* const* rows, int64_t n, float* out,
                              int64_t out_stride) {
  n % kLanes == 0 ? TileOf<Rows, kB, kT, false>(x, x_stride, rows, n, out, out_stride)
                  : TileOf<Rows, kB, kT, true>(x, x_stride, rows, n, out, out_stride);
}

// kB rows with all x rows, three at a time; four are cut into two and two.
template <typename Rows, int kB>
REPRISE_AVX2 void TilesOfInputs(const float* x, int64_t x_stride, int64_t x_rows,
                                const typename Rows::Element* const* rows, int64_t n, float* out,
                                int64_t out_stride) {
  while (x_rows > 0) {
    const int inputs = x_rows == 4 ? 2 : static_cast<int>(std::min<int64_t>(kTileInputs, x_rows));
    switch (inputs) {
      case 1:
        Tile<Rows, kB, 1>(x, x_stride, rows, n, out, out_stride);
        break;
      case 2:
        Tile<Rows, kB, 2>(x, x_stride, rows, n, out, out_stride);
        break;
      default:
        Tile<Rows, kB, kTileInputs>(x, x_stride, rows, n, out, out_stride);
        break;
    }
    x += inputs * x_stride;
    out += inputs * out_stride;
    x_rows -= inputs;
  }
}

// Weights outside, inputs inside: a group of weight rows is read from memory once and stays in
// cache.
template <typename Rows, typename RowAt>
REPRISE_AVX2 void AllTiles(const float* x, int64_t x_stride, int64_t x_rows, const RowAt& row_at,
                           int64_t begin, int64_t end, int64_t n, float* out, int64_t out_stride) {
  const typename Rows::Element* rows[kSingleWeights];
  const int64_t group = x_rows == 1 ? kSingleWeights : kTileWeights;
  int64_t i = begin;
  for (; i + group <= end; i += group) {
    for (int64_t b = 0; b < group; ++b) rows[b] = row_at(i + b);
    if (x_rows == 1) {
      Tile<Rows, kSingleWeights, 1>(x, x_stride, rows, n, out + i, out_stride);
    } else {
      TilesOfInputs<Rows, kTileWeights>(x, x_stride, x_rows, rows, n, out + i, out_stride);
    }
  }
  for (; i < end; ++i) {
    rows[0] = row_at(i);
    TilesOfInputs<Rows, 1>(x, x_stride, x_rows, rows, n, out + i, out_stride);
  }
}

REPRISE_AVX2 void WidenRow(const Bf16Row& row, int64_t n, float* out) {
  int64_t k = 0;
  for (; k + kLanes <= n; k += kLanes) _mm256_storeu_ps(out + k, Bf16Row::Widen(row.bits + k));
  if (k < n) _mm256_maskstore_ps(out + k, TailMask(n - k), Bf16Row::WidenTail(row.bits + k, n - k));
}

template <typename Row>
REPRISE_AVX2 void WidenRow(const Row& row, int64_t n, float* out) {
  __m256 wide[kWidenVectors];
  int64_t k = 0;
  for (; k + kWidenColumns <= n; k += kWidenColumns) {
    row.WidenScaled(k, wide);
    for (int i = 0; i < kWidenVectors; ++i) _mm256_storeu_ps(out + k + i * kLanes, wide[i]);
  }
  if constexpr (std::is_same_v<Row, Fp8Row>) {
    if (k < n) row.WidenScaledTail(k, n, wide);
    for (int i = 0; k < n; ++i, k += kLanes)
      _mm256_maskstore_ps(out + k, TailMask(std::min(kLanes, n - k)), wide[i]);
  }
}

// Many inputs: a panel of rows is widened once for all of them, and multiplied block by block of
// inputs.
template <typename RowAt>
REPRISE_AVX2 void PanelMatmul(const float* x, int64_t x_stride, int64_t x_rows, const RowAt& row_at,
                              int64_t begin, int64_t end, int64_t n, float* y, int64_t y_stride) {
  constexpr bool kStored = std::is_same_v<decltype(row_at(0)), const float*>;
  thread_local std::vector<float> panel;
  const int64_t panel_rows = std::max<int64_t>(1, kPanelFloats / n / kTileWeights) * kTileWeights;
  const int64_t block_rows = std::max<int64_t>(1, kInputFloats / n / kTileInputs) * kTileInputs;
  if (!kStored) panel.resize(static_cast<size_t>(std::min(panel_rows, end - begin) * n));
  const float* data = panel.data();
  for (int64_t i = begin; i < end; i += panel_rows) {
    const int64_t count = std::min(panel_rows, end - i);
    if constexpr (kStored) {
      data = row_at(i);
    } else {
      for (int64_t b = 0; b < count; ++b) WidenRow(row_at(i + b), n, panel.data() + b * n);
    }
    for (int64_t t = 0; t < x_rows; t += block_rows) {
      AllTiles<F32Elements>(
          x + t * x_stride, x_stride, std::min(block_rows, x_rows - t),
          [data, n](int64_t b) { return data + b * n; }, 0, count, n, y + t * y_stride + i,
          y_stride);
    }
  }
}

// out[b] = dot(x, rows[b]); widen(b, k, vectors) gives 32 columns of a row.
// Rows are memory pages apart, where no
// hardware prefetch reaches: `ahead` bytes further, the next rows are asked for.
template <int kB, typename Widen>
REPRISE_AVX2 inline void WidenTile(const float* x, int64_t n, const Widen& widen, int64_t ahead,
                                   float* out) {
  __m256 sum[kB];
  for (int b = 0; b < kB; ++b) sum[b] = _mm256_setzero_ps();
  for (int64_t k = 0; k < n; k += kWidenColumns) {
    for (int b = 0; b < kB; ++b) {
      __m256 wide[kWidenVectors];
      _mm_prefetch(widen.At(b, k) + ahead, _MM_HINT_T0);
      widen(b, k, wide);
      for (int i = 0; i < kWidenVectors; ++i)
        sum[b] = _mm256_fmadd_ps(wide[i], _mm256_loadu_ps(x + k + i * kLanes), sum[b]);
    }
  }
  if constexpr (kB == kTileWeights) {
    _mm_storeu_ps(out, ReduceLanes(sum[0], sum[1], sum[2], sum[3]));
  } else {
    for (int b = 0; b < kB; ++b) out[b] = ReduceLanes(sum[b]);
  }
}

struct WidenFp4 {
  const Fp4Row* rows;
  const char* At(int b, int64_t k) const {
    return reinterpret_cast<const char*>(rows[b].codes + k / 2);
  }
  REPRISE_AVX2 inline void operator()(int b, int64_t k, __m256* out) const {
    rows[b].WidenScaled(k, out);
  }
};
struct WidenFp8 {
  const Fp8Row* rows;
  const char* At(int b, int64_t k) const {
    return reinterpret_cast<const char*>(rows[b].codes + k);
  }
  REPRISE_AVX2 inline void operator()(int b, int64_t k, __m256* out) const {
    rows[b].WidenShifted(k, out);
  }
};

template <typename Row, typename Widen>
REPRISE_AVX2 void WidenMatmul(const float* x, const Weight& w, int64_t begin, int64_t end,
                              float* y) {
  Row rows[kTileWeights];
  const int64_t row_bytes = w.type == WeightType::kFp4 ? w.cols / 2 : w.cols;
  int64_t i = begin;
  for (; i + kTileWeights <= end; i += kTileWeights) {
    for (int64_t b = 0; b < kTileWeights; ++b) rows[b] = Row(w, i + b);
    const int64_t ahead = i + 2 * kTileWeights <= end ? kTileWeights * row_bytes : 0;
    WidenTile<kTileWeights>(x, w.cols, Widen{rows}, ahead, y + i);
  }
  for (; i < end; ++i) {
    rows[0] = Row(w, i);
    WidenTile<1>(x, w.cols, Widen{rows}, /*ahead=*/0, y + i);
  }
}

// out[k] = x[k] * scale of column k * 2^Fp8Row::kShift. False when a product is not exact: then
// nothing may be made of `out`.
REPRISE_AVX2 bool ScaleInput(const float* x, const uint8_t* scales, int64_t n, float* out) {
  const __m256 least = _mm256_set1_ps(0x1.0p-100f), most = _mm256_set1_ps(0x1.0p100f);
  const __m256 magnitude = _mm256_castsi256_ps(_mm256_set1_epi32(0x7FFFFFFF));
  __m256 bad = _mm256_setzero_ps();
  for (int64_t k = 0; k < n; k += kLanes) {
    const int exponent = scales[k / kFp8ScaleBlock] - 127 + Fp8Row::kShift;
    if (exponent > 127) return false;
    const __m256 factor = _mm256_castsi256_ps(_mm256_set1_epi32((exponent + 127) << 23));
    const __m256 value = _mm256_mul_ps(_mm256_loadu_ps(x + k), factor);
    const __m256 size = _mm256_and_ps(value, magnitude);
    const __m256 fits = _mm256_and_ps(_mm256_cmp_ps(size, least, _CMP_GE_OQ),
                                      _mm256_cmp_ps(size, most, _CMP_LE_OQ));
    const __m256 zero = _mm256_cmp_ps(_mm256_loadu_ps(x + k), _mm256_setzero_ps(), _CMP_EQ_OQ);
    bad = _mm256_or_ps(bad, _mm256_andnot_ps(_mm256_or_ps(fits, zero), magnitude));
    _mm256_storeu_ps(out + k, value);
  }
  const __m256i bits = _mm256_castps_si256(bad);
  return _mm256_testz_si256(bits, bits) != 0;
}

// One input. Rows of a block share their scales, which go to the input: powers of two change no
// bit of a product, wherever they are, as long as it is in range.
REPRISE_AVX2 void Fp8Matvec(const float* x, const Weight& w, int64_t begin, int64_t end, float* y,
                            int64_t y_stride) {
  thread_local std::vector<float> scaled;
  scaled.resize(static_cast<size_t>(w.cols));
  while (begin < end) {
    const int64_t block = (w.first_row + begin) / kFp8ScaleBlock;
    const int64_t last = std::min(end, (block + 1) * kFp8ScaleBlock - w.first_row);
    if (w.cols % kWidenColumns == 0 &&
        ScaleInput(x, w.scales + block * w.scale_cols, w.cols, scaled.data())) {
      WidenMatmul<Fp8Row, WidenFp8>(scaled.data(), w, begin, last, y);
    } else {
      PanelMatmul(
          x, w.cols, 1, [&w](int64_t i) { return Fp8Row(w, i); }, begin, last, w.cols, y, y_stride);
    }
    begin = last;
  }
}

REPRISE_AVX2 void Avx2Matmul(const float* x, int64_t x_stride, int64_t x_rows, const Weight& w,
                             int64_t begin, int64_t end, float* y, int64_t y_stride) {
  const int64_t cols = w.cols;
  switch (w.type) {
    case WeightType::kBf16: {
      if (x_rows >= kWidenInputs) {
        return PanelMatmul(
            x, x_stride, x_rows, [&w](int64_t i) { return Bf16Row(w, i); }, begin, end, cols, y,
            y_stride);
      }
      const auto* data = static_cast<const uint16_t*>(w.data) + w.first_row * cols;
      return AllTiles<Bf16Elements>(
          x, x_stride, x_rows, [data, cols](int64_t i) { return data + i * cols; }, begin, end,
          cols, y, y_stride);
    }
    case WeightType::kF32: {
      const auto* data = static_cast<const float*>(w.data) + w.first_row * cols;
      const auto row_at = [data, cols](int64_t i) { return data + i * cols; };
      if (x_rows >= kWidenInputs)
        return PanelMatmul(x, x_stride, x_rows, row_at, begin, end, cols, y, y_stride);
      return AllTiles<F32Elements>(x, x_stride, x_rows, row_at, begin, end, cols, y, y_stride);
    }
    case WeightType::kFp8: {
      if (x_rows == 1) return Fp8Matvec(x, w, begin, end, y, y_stride);
      return PanelMatmul(
          x, x_stride, x_rows, [&w](int64_t i) { return Fp8Row(w, i); }, begin, end, cols, y,
          y_stride);
    }
    case WeightType::kFp4: {
      if (x_rows == 1) return WidenMatmul<Fp4Row, WidenFp4>(x, w, begin, end, y);
      return PanelMatmul(
          x, x_stride, x_rows, [&w](int64_t i) { return Fp4Row(w, i); }, begin, end, cols, y,
          y_stride);
    }
  }
}

REPRISE_AVX2 void Avx2DotRows(const float* x, int64_t x_stride, int64_t x_rows,
                              const float* const* rows, int64_t count, int64_t n, float* out,
                              int64_t out_stride) {
  AllTiles<F32Elements>(
      x, x_stride, x_rows, [rows](int64_t i) { return rows[i]; }, 0, count, n, out, out_stride);
}

REPRISE_AVX2 float Avx2Dot(const float* a, const float* b, int64_t n) {
  float out;
  Tile<F32Elements, 1, 1>(a, 0, &b, n, &out, 0);
  return out;
}

// kVectors vectors of columns from column c on, for kHeads heads.
template <int kHeads, int kVectors>
REPRISE_AVX2 inline void WeightedTile(const float* p, const float* const* rows, int64_t count,
                                      int64_t n, int64_t c, float* out) {
  __m256 sum[kHeads][kVectors];
  for (int h = 0; h < kHeads; ++h) {
    for (int v = 0; v < kVectors; ++v) sum[h][v] = _mm256_setzero_ps();
  }
  for (int64_t j = 0; j < count; ++j) {
    __m256 row[kVectors];
    for (int v = 0; v < kVectors; ++v) row[v] = _mm256_loadu_ps(rows[j] + c + v * kLanes);
    for (int h = 0; h < kHeads; ++h) {
      const __m256 weight = _mm256_broadcast_ss(p + h * count + j);
      for (int v = 0; v < kVectors; ++v) sum[h][v] = _mm256_fmadd_ps(weight, row[v], sum[h][v]);
    }
  }
  for (int h = 0; h < kHeads; ++h) {
    for (int v = 0; v < kVectors; ++v) _mm256_storeu_ps(out + h * n + c + v * kLanes, sum[h][v]);
  }
}

template <int kHeads>
REPRISE_AVX2 void WeightedHeads(const float* p, const float* const* rows, int64_t count, int64_t n,
                                float* out) {
  constexpr int kVectors = kHeads == 1 ? 4 : 2;
  int64_t c = 0;
  for (; c + kVectors * kLanes <= n; c += kVectors * kLanes)
    WeightedTile<kHeads, kVectors>(p, rows, count, n, c, out);
  for (; c + kLanes <= n; c += kLanes) WeightedTile<kHeads, 1>(p, rows, count, n, c, out);
  if (c == n) return;
  const __m256i mask = TailMask(n - c);
  for (int h = 0; h < kHeads; ++h) {
    __m256 sum = _mm256_setzero_ps();
    for (int64_t j = 0; j < count; ++j) {
      sum = _mm256_fmadd_ps(_mm256_broadcast_ss(p + h * count + j),
                            _mm256_maskload_ps(rows[j] + c, mask), sum);
    }
    _mm256_maskstore_ps(out + h * n + c, mask, sum);
  }
}

REPRISE_AVX2 void Avx2WeightedRows(const float* p, int64_t heads, const float* const* rows,
                                   int64_t count, int64_t n, float* out) {
  int64_t h = 0;
  for (; h + 4 <= heads; h += 4) WeightedHeads<4>(p + h * count, rows, count, n, out + h * n);
  for (; h < heads; ++h) WeightedHeads<1>(p + h * count, rows, count, n, out + h * n);
}

}  // namespace

const internal::DotKernels* internal::Avx2Kernels() {
  static const DotKernels kKernels = {Avx2Matmul, PortableKernels().copy_row, Avx2DotRows,
                                      Avx2WeightedRows, Avx2Dot};
  return HasAvx2() ? &kKernels : nullptr;
}

}  // namespace reprise::kernels::cpu

#else

namespace reprise::kernels::cpu {
const internal::DotKernels* internal::Avx2Kernels() { return nullptr; }
}  // namespace reprise::kernels::cpu

#endif
