// The number formats of quantised checkpoints, one value at a time. The vector paths compute the
// same values.
#pragma once

#include <bit>
#include <cstdint>

namespace reprise::kernels::cpu {

inline float WidenBf16(uint16_t bits) {
  return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16);
}

// Nearest bfloat16, ties to even; x is finite.
inline float RoundBf16(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  return std::bit_cast<float>((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000u);
}

// 2^(b - 127); b = 0 is a subnormal float.
constexpr float WidenE8m0(uint8_t b) {
  return std::bit_cast<float>(b == 0 ? 0x00400000u : static_cast<uint32_t>(b) << 23);
}

// e4m3fn without its two NaN codes: 1 sign, 4 exponent (bias 7), 3 mantissa bits.
inline float WidenE4m3(uint8_t code) {
  const uint32_t sign = static_cast<uint32_t>(code & 0x80) << 24;
  const uint32_t exponent = (code >> 3) & 15, mantissa = code & 7;
  if (exponent == 0) {
    const float value = static_cast<float>(mantissa) * 0x1.0p-9f;
    return std::bit_cast<float>(std::bit_cast<uint32_t>(value) | sign);
  }
  return std::bit_cast<float>(sign | ((exponent + 120) << 23) | (mantissa << 20));
}

// e2m1: 0, 0.5, 1, 1.5, 2, 3, 4, 6; bit 3 is the sign.
constexpr float WidenE2m1(uint8_t code) {
  constexpr float kMagnitude[8] = {0, 0.5f, 1, 1.5f, 2, 3, 4, 6};
  const float value = kMagnitude[code & 7];
  return (code & 8) != 0 ? -value : value;
}

}  // namespace reprise::kernels::cpu
