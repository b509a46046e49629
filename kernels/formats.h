// The number formats of quantised checkpoints, one value at a time, for processors and devices. The
// vector paths compute the same values.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

#include "kernels/host_device.h"

namespace reprise::kernels {

// Largest values, and what the largest of a group counts for at least.
inline constexpr float kFp8Max = 448.0f, kFp8FloorAmax = 1e-4f;
inline constexpr float kFp4Max = 6.0f, kFp4FloorAmax = 6.0f * 0x1.0p-126f;

REPRISE_BOTH inline float WidenBf16(uint16_t bits) {
  return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16);
}

// Nearest bfloat16, ties to even; x is finite.
REPRISE_BOTH inline float RoundBf16(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  return std::bit_cast<float>((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000u);
}

// The bits of x, which is a bfloat16 value.
REPRISE_BOTH inline uint16_t Bf16Bits(float x) {
  return static_cast<uint16_t>(std::bit_cast<uint32_t>(x) >> 16);
}

// 2^(b - 127); b = 0 is a subnormal float.
REPRISE_BOTH constexpr float WidenE8m0(uint8_t b) {
  return std::bit_cast<float>(b == 0 ? 0x00400000u : static_cast<uint32_t>(b) << 23);
}

// e4m3fn without its two NaN codes: 1 sign, 4 exponent (bias 7), 3 mantissa bits.
REPRISE_BOTH inline float WidenE4m3(uint8_t code) {
  const uint32_t sign = static_cast<uint32_t>(code & 0x80) << 24;
  const uint32_t exponent = (code >> 3) & 15, mantissa = code & 7;
  if (exponent == 0) {
    const float value = static_cast<float>(mantissa) * 0x1.0p-9f;
    return std::bit_cast<float>(std::bit_cast<uint32_t>(value) | sign);
  }
  return std::bit_cast<float>(sign | ((exponent + 120) << 23) | (mantissa << 20));
}

// e2m1: 0, 0.5, 1, 1.5, 2, 3, 4, 6; bit 3 is the sign.
REPRISE_BOTH constexpr float WidenE2m1(uint8_t code) {
  constexpr float kMagnitude[8] = {0, 0.5f, 1, 1.5f, 2, 3, 4, 6};
  const float value = kMagnitude[code & 7];
  return (code & 8) != 0 ? -value : value;
}

// The exponent of the least power of two >= x, from the bits of a positive normal float.
REPRISE_BOTH inline int Log2Ceil(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  return static_cast<int>(bits >> 23) - 127 + ((bits & 0x7FFFFF) != 0 ? 1 : 0);
}

// Of the scale of a group whose largest magnitude, floor included, is `amax`.
REPRISE_BOTH inline int Fp8Exponent(float amax) { return Log2Ceil(amax * (1.0f / kFp8Max)); }
REPRISE_BOTH inline int Fp4Exponent(float amax) { return Log2Ceil(amax * (1.0f / kFp4Max)); }

REPRISE_BOTH inline float PowerOfTwo(int exponent) { return ldexpf(1.0f, exponent); }
REPRISE_BOTH inline uint8_t ScaleByte(int exponent) { return static_cast<uint8_t>(exponent + 127); }

// Nearest e4m3, ties to even; |x| <= 448.
REPRISE_BOTH inline float NearestE4m3(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  const float normal = std::bit_cast<float>((bits + 0x7FFFF + ((bits >> 20) & 1)) & 0xFFF00000u);
  // Below 2^-6 the grid is 2^-9: the unit in the last place of 1.5 * 2^14.
  constexpr float kGrid = 0x1.8p14f;
  const float subnormal = (x + kGrid) - kGrid;
  return std::fabs(x) < 0x1.0p-6f ? subnormal : normal;
}

// Nearest e2m1, ties to even; |x| <= 6.
REPRISE_BOTH inline float NearestE2m1(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  const float normal = std::bit_cast<float>((bits + 0x1FFFFF + ((bits >> 22) & 1)) & 0xFFC00000u);
  constexpr float kGrid = 0x1.8p22f;  // below 1 the grid is 0.5
  const float subnormal = (x + kGrid) - kGrid;
  return std::fabs(x) < 1.0f ? subnormal : normal;
}

REPRISE_BOTH inline uint8_t SignBit(float x, int place) {
  return static_cast<uint8_t>(std::bit_cast<uint32_t>(x) >> 31 << place);
}

// x is an e4m3 value.
REPRISE_BOTH inline uint8_t E4m3Code(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x) & 0x7FFFFFFF;
  const float size = std::bit_cast<float>(bits);
  const uint8_t code = size < 0x1.0p-6f ? static_cast<uint8_t>(size * 0x1.0p9f)
                                        : static_cast<uint8_t>((bits >> 20) - (120 << 3));
  return code | SignBit(x, 7);
}

// x is an e2m1 value.
REPRISE_BOTH inline uint8_t E2m1Code(float x) {
  constexpr uint8_t kCodeOfTwice[13] = {0, 1, 2, 3, 4, 0, 5, 0, 6, 0, 0, 0, 7};
  return kCodeOfTwice[static_cast<int>(std::fabs(x) * 2.0f)] | SignBit(x, 3);
}

}  // namespace reprise::kernels
