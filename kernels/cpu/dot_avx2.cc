// AVX2 tiles: several dot products run at once to hide the latency of their chains, each in the lane order that dot.h
// fixes, so a tile's shape never shows in a result. 16 registers: 12 sums, 3 inputs, 1 weight.
#include "kernels/cpu/dot.h"

#if defined(__x86_64__)
#include <immintrin.h>

#include <algorithm>
#include <cstring>
#include <type_traits>
#include <vector>

#include "kernels/cpu/formats.h"

#define REPRISE_AVX2 __attribute__((target("avx2,fma,f16c")))

namespace reprise::kernels::cpu {
namespace {

constexpr int64_t kLanes = 8;
constexpr int kTileInputs = 3;    // x rows in a wide tile
constexpr int kTileWeights = 4;   // weight rows in a wide tile
constexpr int kSingleWeights = 8; // weight rows in a tile of one x row

REPRISE_AVX2 inline float ReduceLanes(__m256 v) {
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps(two, two, 1)));
}

REPRISE_AVX2 inline __m256i TailMask(int64_t left) {
  alignas(32) static constexpr int32_t kMask[16] = {-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0};
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(kMask + kLanes - left));
}

// How rows of a type become eight floats; LoadTail gives zeros past `left`.
struct F32Rows {
  using Element = float;
  REPRISE_AVX2 static inline __m256 Load(const float* p) { return _mm256_loadu_ps(p); }
  REPRISE_AVX2 static inline __m256 LoadTail(const float* p, int64_t left) {
    return _mm256_maskload_ps(p, TailMask(left));
  }
};

struct Bf16Rows {
  using Element = uint16_t;
  REPRISE_AVX2 static inline __m256 Load(const uint16_t* p) {
    const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
  }
  REPRISE_AVX2 static inline __m256 LoadTail(const uint16_t* p, int64_t left) {
    uint16_t padded[kLanes] = {};
    std::memcpy(padded, p, static_cast<size_t>(left) * sizeof(uint16_t));
    return Load(padded);
  }
};

// out[t][b] = dot(x + t * x_stride, rows[b]) for a tile of kB rows and kT inputs.
template <typename Rows, int kB, int kT>
REPRISE_AVX2 inline void Tile(const float* x, int64_t x_stride, const typename Rows::Element* const* rows, int64_t n,
                              float* out, int64_t out_stride) {
  __m256 sum[kB][kT];
  for (int b = 0; b < kB; ++b) {
    for (int t = 0; t < kT; ++t) sum[b][t] = _mm256_setzero_ps();
  }
  int64_t k = 0;
  for (; k + kLanes <= n; k += kLanes) {
    __m256 input[kT];
    for (int t = 0; t < kT; ++t) input[t] = _mm256_loadu_ps(x + t * x_stride + k);
    for (int b = 0; b < kB; ++b) {
      const __m256 weight = Rows::Load(rows[b] + k);
      for (int t = 0; t < kT; ++t) sum[b][t] = _mm256_fmadd_ps(weight, input[t], sum[b][t]);
    }
  }
  if (k < n) {
    for (int b = 0; b < kB; ++b) {
      const __m256 weight = Rows::LoadTail(rows[b] + k, n - k);
      for (int t = 0; t < kT; ++t) {
        sum[b][t] = _mm256_fmadd_ps(weight, F32Rows::LoadTail(x + t * x_stride + k, n - k), sum[b][t]);
      }
    }
  }
  for (int b = 0; b < kB; ++b) {
    for (int t = 0; t < kT; ++t) out[t * out_stride + b] = ReduceLanes(sum[b][t]);
  }
}

template <typename Rows, int kB>
REPRISE_AVX2 void TileOfInputs(int inputs, const float* x, int64_t x_stride,
                               const typename Rows::Element* const* rows, int64_t n, float* out, int64_t out_stride) {
  switch (inputs) {
    case 1: return Tile<Rows, kB, 1>(x, x_stride, rows, n, out, out_stride);
    case 2: return Tile<Rows, kB, 2>(x, x_stride, rows, n, out, out_stride);
    default: return Tile<Rows, kB, 3>(x, x_stride, rows, n, out, out_stride);
  }
}

// Weights outside, inputs inside: a group of weight rows is read from memory once and stays in cache.
template <typename Rows, typename RowAt>
REPRISE_AVX2 void AllTiles(const float* x, int64_t x_stride, int64_t x_rows, const RowAt& row_at, int64_t begin,
                           int64_t end, int64_t n, float* out, int64_t out_stride) {
  const typename Rows::Element* rows[kSingleWeights];
  int64_t i = begin;
  const int64_t group = x_rows == 1 ? kSingleWeights : kTileWeights;
  for (; i + group <= end; i += group) {
    for (int64_t b = 0; b < group; ++b) rows[b] = row_at(i + b);
    if (x_rows == 1) {
      Tile<Rows, kSingleWeights, 1>(x, x_stride, rows, n, out + i, out_stride);
      continue;
    }
    for (int64_t t = 0; t < x_rows; t += kTileInputs) {
      const int inputs = static_cast<int>(std::min<int64_t>(kTileInputs, x_rows - t));
      TileOfInputs<Rows, kTileWeights>(inputs, x + t * x_stride, x_stride, rows, n, out + t * out_stride + i,
                                       out_stride);
    }
  }
  for (; i < end; ++i) {
    rows[0] = row_at(i);
    for (int64_t t = 0; t < x_rows; t += kTileInputs) {
      const int inputs = static_cast<int>(std::min<int64_t>(kTileInputs, x_rows - t));
      TileOfInputs<Rows, 1>(inputs, x + t * x_stride, x_stride, rows, n, out + t * out_stride + i, out_stride);
    }
  }
}

// Rows of eight-bit floats and their scales.
struct Fp8Rows {
  static constexpr int64_t kBlock = kFp8ScaleBlock;
  const uint8_t* codes;
  const uint8_t* scales;

  Fp8Rows() = default;
  Fp8Rows(const Weight& w, int64_t row)
      : codes(static_cast<const uint8_t*>(w.data) + (w.first_row + row) * w.cols),
        scales(w.scales + (w.first_row + row) / kFp8ScaleBlock * w.scale_cols) {}

  // An e4m3 moved into the fields of a half is 2^8 too small.
  REPRISE_AVX2 inline __m256 Factor(int64_t k) const {
    return _mm256_set1_ps(WidenE8m0(scales[k / kBlock]) * 0x1.0p8f);
  }
  REPRISE_AVX2 static inline __m256 Widen(__m128i bytes, __m256 factor) {
    const __m128i halves =
        _mm_and_si128(_mm_slli_epi16(_mm_cvtepi8_epi16(bytes), 7), _mm_set1_epi16(static_cast<int16_t>(0xBFFF)));
    return _mm256_mul_ps(_mm256_cvtph_ps(halves), factor);
  }
  REPRISE_AVX2 inline __m256 Load(int64_t k, __m256 factor) const {
    return Widen(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(codes + k)), factor);
  }
  REPRISE_AVX2 inline __m256 LoadTail(int64_t k, int64_t left, __m256 factor) const {
    uint8_t padded[kLanes] = {};
    std::memcpy(padded, codes + k, static_cast<size_t>(left));
    return Widen(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(padded)), factor);
  }
};

// Rows of packed e2m1 and their scales; the number of columns is a multiple of 32.
struct Fp4Rows {
  static constexpr int64_t kBlock = kFp4ScaleBlock;
  const uint8_t* codes;
  const uint8_t* scales;

  Fp4Rows() = default;
  Fp4Rows(const Weight& w, int64_t row)
      : codes(static_cast<const uint8_t*>(w.data) + (w.first_row + row) * (w.cols / 2)),
        scales(w.scales + (w.first_row + row) * w.scale_cols) {}

  // The table below holds twice the value.
  REPRISE_AVX2 inline __m256 Factor(int64_t k) const {
    return _mm256_set1_ps(WidenE8m0(scales[k / kBlock]) * 0.5f);
  }
  REPRISE_AVX2 inline __m256 Load(int64_t k, __m256 factor) const {
    int32_t packed;
    std::memcpy(&packed, codes + k / 2, sizeof(packed));
    const __m128i bytes = _mm_cvtsi32_si128(packed), low = _mm_set1_epi8(15);
    const __m128i nibbles =
        _mm_unpacklo_epi8(_mm_and_si128(bytes, low), _mm_and_si128(_mm_srli_epi16(bytes, 4), low));
    const __m128i table = _mm_setr_epi8(0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12);
    const __m256i twice = _mm256_cvtepi8_epi32(_mm_shuffle_epi8(table, nibbles));
    return _mm256_mul_ps(_mm256_cvtepi32_ps(twice), factor);
  }
  REPRISE_AVX2 inline __m256 LoadTail(int64_t k, int64_t, __m256 factor) const { return Load(k, factor); }
};

// As Tile, for rows with scales.
template <typename Rows, int kB, int kT>
REPRISE_AVX2 inline void ScaledTile(const float* x, int64_t x_stride, const Rows* rows, int64_t n, float* out,
                                    int64_t out_stride) {
  __m256 sum[kB][kT];
  for (int b = 0; b < kB; ++b) {
    for (int t = 0; t < kT; ++t) sum[b][t] = _mm256_setzero_ps();
  }
  for (int64_t begin = 0; begin < n; begin += Rows::kBlock) {
    const int64_t end = std::min(n, begin + Rows::kBlock);
    __m256 factor[kB];
    for (int b = 0; b < kB; ++b) factor[b] = rows[b].Factor(begin);
    int64_t k = begin;
    for (; k + kLanes <= end; k += kLanes) {
      __m256 input[kT];
      for (int t = 0; t < kT; ++t) input[t] = _mm256_loadu_ps(x + t * x_stride + k);
      for (int b = 0; b < kB; ++b) {
        const __m256 weight = rows[b].Load(k, factor[b]);
        for (int t = 0; t < kT; ++t) sum[b][t] = _mm256_fmadd_ps(weight, input[t], sum[b][t]);
      }
    }
    if (k == end) continue;
    for (int b = 0; b < kB; ++b) {
      const __m256 weight = rows[b].LoadTail(k, end - k, factor[b]);
      for (int t = 0; t < kT; ++t) {
        sum[b][t] = _mm256_fmadd_ps(weight, F32Rows::LoadTail(x + t * x_stride + k, end - k), sum[b][t]);
      }
    }
  }
  for (int b = 0; b < kB; ++b) {
    for (int t = 0; t < kT; ++t) out[t * out_stride + b] = ReduceLanes(sum[b][t]);
  }
}

template <typename Rows>
REPRISE_AVX2 void WidenRow(const Rows& row, int64_t n, float* out) {
  for (int64_t begin = 0; begin < n; begin += Rows::kBlock) {
    const int64_t end = std::min(n, begin + Rows::kBlock);
    const __m256 factor = row.Factor(begin);
    int64_t k = begin;
    for (; k + kLanes <= end; k += kLanes) _mm256_storeu_ps(out + k, row.Load(k, factor));
    if (k < end) _mm256_maskstore_ps(out + k, TailMask(end - k), row.LoadTail(k, end - k, factor));
  }
}

template <typename Rows, int kB>
REPRISE_AVX2 void ScaledTileOfInputs(int64_t inputs, const float* x, int64_t x_stride, const Rows* rows, int64_t n,
                                     float* out, int64_t out_stride) {
  switch (inputs) {
    case 1: return ScaledTile<Rows, kB, 1>(x, x_stride, rows, n, out, out_stride);
    case 2: return ScaledTile<Rows, kB, 2>(x, x_stride, rows, n, out, out_stride);
    default: return ScaledTile<Rows, kB, 3>(x, x_stride, rows, n, out, out_stride);
  }
}

// As ScaledTile for one input, a block of 32 columns at a time: the codes of a block are taken apart together.
template <int kB>
REPRISE_AVX2 inline void Fp4Tile(const float* x, const Fp4Rows* rows, int64_t n, float* out) {
  const __m128i low = _mm_set1_epi8(15);
  // The high bytes of the values as halves; their low bytes are 0.
  const __m128i table = _mm_setr_epi8(0, 0x38, 0x3C, 0x3E, 0x40, 0x42, 0x44, 0x46, -0x80, -0x48, -0x44, -0x42, -0x40,
                                      -0x3E, -0x3C, -0x3A);
  const __m128i zero = _mm_setzero_si128();
  __m256 sum[kB];
  for (int b = 0; b < kB; ++b) sum[b] = _mm256_setzero_ps();
  for (int64_t k = 0; k < n; k += kFp4ScaleBlock) {
    __m256 input[4];
    for (int i = 0; i < 4; ++i) input[i] = _mm256_loadu_ps(x + k + i * kLanes);
    for (int b = 0; b < kB; ++b) {
      const __m256 factor = _mm256_set1_ps(WidenE8m0(rows[b].scales[k / kFp4ScaleBlock]));
      const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(rows[b].codes + k / 2));
      const __m128i even = _mm_and_si128(bytes, low), odd = _mm_and_si128(_mm_srli_epi16(bytes, 4), low);
      const __m128i first = _mm_shuffle_epi8(table, _mm_unpacklo_epi8(even, odd));
      const __m128i second = _mm_shuffle_epi8(table, _mm_unpackhi_epi8(even, odd));
      const __m128i parts[4] = {_mm_unpacklo_epi8(zero, first), _mm_unpackhi_epi8(zero, first),
                                _mm_unpacklo_epi8(zero, second), _mm_unpackhi_epi8(zero, second)};
      for (int i = 0; i < 4; ++i) {
        const __m256 weight = _mm256_mul_ps(_mm256_cvtph_ps(parts[i]), factor);
        sum[b] = _mm256_fmadd_ps(weight, input[i], sum[b]);
      }
    }
  }
  for (int b = 0; b < kB; ++b) out[b] = ReduceLanes(sum[b]);
}

// Few inputs: weights are widened in registers. Many: a group of rows is widened once for all of them.
template <typename Rows>
REPRISE_AVX2 void ScaledMatmul(const float* x, int64_t x_stride, int64_t x_rows, const Weight& w, int64_t begin,
                               int64_t end, float* y, int64_t y_stride) {
  const int64_t n = w.cols;
  if (x_rows <= kTileInputs) {
    Rows rows[kTileWeights];
    int64_t i = begin;
    for (; i + kTileWeights <= end; i += kTileWeights) {
      for (int64_t b = 0; b < kTileWeights; ++b) rows[b] = Rows(w, i + b);
      if constexpr (std::is_same_v<Rows, Fp4Rows>) {
        if (x_rows == 1) {
          Fp4Tile<kTileWeights>(x, rows, n, y + i);
          continue;
        }
      }
      ScaledTileOfInputs<Rows, kTileWeights>(x_rows, x, x_stride, rows, n, y + i, y_stride);
    }
    for (; i < end; ++i) {
      rows[0] = Rows(w, i);
      ScaledTileOfInputs<Rows, 1>(x_rows, x, x_stride, rows, n, y + i, y_stride);
    }
    return;
  }
  thread_local std::vector<float> widened;
  widened.resize(static_cast<size_t>(kTileWeights * n));
  const float* data = widened.data();
  for (int64_t i = begin; i < end; i += kTileWeights) {
    const int64_t count = std::min<int64_t>(kTileWeights, end - i);
    for (int64_t b = 0; b < count; ++b) WidenRow(Rows(w, i + b), n, widened.data() + b * n);
    AllTiles<F32Rows>(
        x, x_stride, x_rows, [data, n](int64_t b) { return data + b * n; }, 0, count, n, y + i, y_stride);
  }
}

REPRISE_AVX2 void Avx2Matmul(const float* x, int64_t x_stride, int64_t x_rows, const Weight& w, int64_t begin,
                             int64_t end, float* y, int64_t y_stride) {
  const int64_t cols = w.cols;
  switch (w.type) {
    case WeightType::kBf16: {
      const auto* data = static_cast<const uint16_t*>(w.data) + w.first_row * cols;
      return AllTiles<Bf16Rows>(
          x, x_stride, x_rows, [data, cols](int64_t i) { return data + i * cols; }, begin, end, cols, y, y_stride);
    }
    case WeightType::kF32: {
      const auto* data = static_cast<const float*>(w.data) + w.first_row * cols;
      return AllTiles<F32Rows>(
          x, x_stride, x_rows, [data, cols](int64_t i) { return data + i * cols; }, begin, end, cols, y, y_stride);
    }
    case WeightType::kFp8: return ScaledMatmul<Fp8Rows>(x, x_stride, x_rows, w, begin, end, y, y_stride);
    case WeightType::kFp4: return ScaledMatmul<Fp4Rows>(x, x_stride, x_rows, w, begin, end, y, y_stride);
  }
}

REPRISE_AVX2 void Avx2DotRows(const float* x, int64_t x_stride, int64_t x_rows, const float* const* rows,
                              int64_t count, int64_t n, float* out, int64_t out_stride) {
  AllTiles<F32Rows>(
      x, x_stride, x_rows, [rows](int64_t i) { return rows[i]; }, 0, count, n, out, out_stride);
}

REPRISE_AVX2 float Avx2Dot(const float* a, const float* b, int64_t n) {
  float out;
  Tile<F32Rows, 1, 1>(a, 0, &b, n, &out, 0);
  return out;
}

template <int kHeads>
REPRISE_AVX2 inline void WeightedTile(const float* p, const float* const* rows, int64_t count, int64_t n, float* out) {
  for (int64_t c = 0; c < n; c += kLanes) {
    const int64_t left = std::min(kLanes, n - c);
    const __m256i mask = TailMask(left);
    __m256 sum[kHeads];
    for (int h = 0; h < kHeads; ++h) sum[h] = _mm256_setzero_ps();
    for (int64_t j = 0; j < count; ++j) {
      const __m256 row = left == kLanes ? _mm256_loadu_ps(rows[j] + c) : _mm256_maskload_ps(rows[j] + c, mask);
      for (int h = 0; h < kHeads; ++h) {
        sum[h] = _mm256_fmadd_ps(_mm256_set1_ps(p[h * count + j]), row, sum[h]);
      }
    }
    for (int h = 0; h < kHeads; ++h) _mm256_maskstore_ps(out + h * n + c, mask, sum[h]);
  }
}

REPRISE_AVX2 void Avx2WeightedRows(const float* p, int64_t heads, const float* const* rows, int64_t count, int64_t n,
                                   float* out) {
  int64_t h = 0;
  for (; h + 8 <= heads; h += 8) WeightedTile<8>(p + h * count, rows, count, n, out + h * n);
  for (; h + 4 <= heads; h += 4) WeightedTile<4>(p + h * count, rows, count, n, out + h * n);
  for (; h < heads; ++h) WeightedTile<1>(p + h * count, rows, count, n, out + h * n);
}

}  // namespace

const internal::DotKernels* internal::Avx2Kernels() {
  static const DotKernels kKernels = {Avx2Matmul, PortableKernels().copy_row, Avx2DotRows, Avx2WeightedRows, Avx2Dot};
  static const bool supported = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                                __builtin_cpu_supports("f16c");
  return supported ? &kKernels : nullptr;
}

}  // namespace reprise::kernels::cpu

#else

namespace reprise::kernels::cpu {
const internal::DotKernels* internal::Avx2Kernels() { return nullptr; }
}  // namespace reprise::kernels::cpu

#endif
