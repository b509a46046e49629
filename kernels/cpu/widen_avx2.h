// Stored weights taken apart to float32, 32 columns of a row at a time, in AVX2 registers. Widening
// is exact; the scale of FP8 and FP4 is a power of two that the caller multiplies by. Internal to
// kernels/cpu, x86-64 only.
#pragma once

#include <bit>
#include <cstring>

#include "kernels/cpu/avx2.h"
#include "kernels/cpu/dot.h"
#include "kernels/formats.h"

namespace reprise::kernels::cpu::internal {

// Columns of one step: lanes [8 i, 8 i + 8) are out[i].
inline constexpr int64_t kWidenColumns = 32;
inline constexpr int kWidenVectors = 4;

// 16 bytes in both halves.
REPRISE_AVX2 inline __m256i LoadTwice(const uint8_t* p) {
  return _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}

// A row of bfloat16.
struct Bf16Row {
  const uint16_t* bits = nullptr;

  Bf16Row() = default;
  Bf16Row(const Weight& w, int64_t row)
      : bits(static_cast<const uint16_t*>(w.data) + (w.first_row + row) * w.cols) {}
  static REPRISE_AVX2 inline __m256 Widen(const uint16_t* p) {
    const __m128i eight = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(eight), 16));
  }
  static REPRISE_AVX2 inline __m256 WidenTail(const uint16_t* p, int64_t left) {
    uint16_t padded[kLanes] = {};
    std::memcpy(padded, p, static_cast<size_t>(left) * sizeof(uint16_t));
    return Widen(padded);
  }
};

// A row of e4m3 codes.
struct Fp8Row {
  const uint8_t* codes = nullptr;
  const uint8_t* scales = nullptr;

  Fp8Row() = default;
  Fp8Row(const Weight& w, int64_t row)
      : codes(static_cast<const uint8_t*>(w.data) + (w.first_row + row) * w.cols),
        scales(w.scales + (w.first_row + row) / kFp8ScaleBlock * w.scale_cols) {}

  // Columns [k, k + 32) times 2^-kShift, without their scale: the fields of a code moved into those
  // of a half, whose bias is another.
  static constexpr int kShift = 8;
  REPRISE_AVX2 inline void WidenShifted(int64_t k, __m256* out) const { Halves(codes + k, out); }
  // Columns [k, k + 32), scaled.
  REPRISE_AVX2 inline void WidenScaled(int64_t k, __m256* out) const {
    Halves(codes + k, out);
    Scale(k, out);
  }
  // Columns [k, n), scaled, zeros behind.
  REPRISE_AVX2 inline void WidenScaledTail(int64_t k, int64_t n, __m256* out) const {
    uint8_t padded[kWidenColumns] = {};
    std::memcpy(padded, codes + k, static_cast<size_t>(n - k));
    Halves(padded, out);
    Scale(k, out);
  }

 private:
  static REPRISE_AVX2 inline void Halves(const uint8_t* p, __m256* out) {
    // Each code becomes the high byte of a word; then the sign stays and the rest moves down.
    const __m256i spread =
        _mm256_setr_epi8(-1, 0, -1, 1, -1, 2, -1, 3, -1, 4, -1, 5, -1, 6, -1, 7,  //
                         -1, 8, -1, 9, -1, 10, -1, 11, -1, 12, -1, 13, -1, 14, -1, 15);
    const __m256i fields = _mm256_set1_epi16(static_cast<int16_t>(0xBFFF));
    for (int i = 0; i < kWidenVectors; i += 2) {
      const __m256i words = _mm256_srai_epi16(_mm256_shuffle_epi8(LoadTwice(p + i * 8), spread), 1);
      const __m256i halves = _mm256_and_si256(words, fields);
      out[i] = _mm256_cvtph_ps(_mm256_castsi256_si128(halves));
      out[i + 1] = _mm256_cvtph_ps(_mm256_extracti128_si256(halves, 1));
    }
  }
  REPRISE_AVX2 inline void Scale(int64_t k, __m256* out) const {
    const __m256 factor = _mm256_set1_ps(WidenE8m0(scales[k / kFp8ScaleBlock]) * 0x1.0p8f);
    for (int i = 0; i < kWidenVectors; ++i) out[i] = _mm256_mul_ps(out[i], factor);
  }
};

// The 16 values of a code times each scale, as bfloat16: their low bytes, then their high bytes.
struct Fp4Tables {
  constexpr Fp4Tables() {
    for (int b = 0; b <= kScaleByteMax; ++b) {
      for (int code = 0; code < 16; ++code) {
        const float value =
            WidenE2m1(static_cast<uint8_t>(code)) * WidenE8m0(static_cast<uint8_t>(b));
        const uint32_t bits = std::bit_cast<uint32_t>(value);
        bytes[b][code] = static_cast<uint8_t>(bits >> 16);
        bytes[b][16 + code] = static_cast<uint8_t>(bits >> 24);
      }
    }
  }
  alignas(32) uint8_t bytes[256][32] = {};
};
inline constexpr Fp4Tables kFp4Tables;

// A row of packed e2m1 codes; the number of columns is a multiple of 32.
struct Fp4Row {
  const uint8_t* codes = nullptr;
  const uint8_t* scales = nullptr;

  Fp4Row() = default;
  Fp4Row(const Weight& w, int64_t row)
      : codes(static_cast<const uint8_t*>(w.data) + (w.first_row + row) * (w.cols / 2)),
        scales(w.scales + (w.first_row + row) * w.scale_cols) {}

  // Columns [k, k + 32), scaled.
  REPRISE_AVX2 inline void WidenScaled(int64_t k, __m256* out) const {
    // Lane j of out[i] is element 8 i + j, in byte 4 i + j / 2: the low nibble of an even lane, the
    // high one of an odd lane. The bytes that a lane needs are brought together and both nibbles of
    // each looked up, so that a lane holds the bfloat16 values of two vectors: the first in its low
    // half, the second in its high one.
    const __m256i gather = _mm256_setr_epi8(0, 4, 0, 4, 1, 5, 1, 5, 8, 12, 8, 12, 9, 13, 9, 13,  //
                                            2, 6, 2, 6, 3, 7, 3, 7, 10, 14, 10, 14, 11, 15, 11, 15);
    const __m256i bytes = LoadTwice(codes + k / 2);
    const __m256i pairs = _mm256_shuffle_epi8(bytes, gather);
    const __m256i chosen = _mm256_blend_epi16(pairs, _mm256_srli_epi16(pairs, 4), 0xAA);
    const __m256i nibbles = _mm256_and_si256(chosen, _mm256_set1_epi8(15));
    const uint8_t* table = kFp4Tables.bytes[scales[k / kFp4ScaleBlock]];
    const __m256i low = _mm256_shuffle_epi8(LoadTwice(table), nibbles);
    const __m256i high = _mm256_shuffle_epi8(LoadTwice(table + 16), nibbles);
    const __m256i first = _mm256_unpacklo_epi8(low, high), second = _mm256_unpackhi_epi8(low, high);
    const __m256i mask = _mm256_set1_epi32(static_cast<int32_t>(0xFFFF0000));
    out[0] = _mm256_castsi256_ps(_mm256_slli_epi32(first, 16));
    out[1] = _mm256_castsi256_ps(_mm256_and_si256(first, mask));
    out[2] = _mm256_castsi256_ps(_mm256_slli_epi32(second, 16));
    out[3] = _mm256_castsi256_ps(_mm256_and_si256(second, mask));
  }
};

}  // namespace reprise::kernels::cpu::internal
