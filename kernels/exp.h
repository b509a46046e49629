// e^x of a float in plain arithmetic, so that loops over it vectorise and every machine, device and
// path gives the same bits.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

#include "kernels/host_device.h"

namespace reprise::kernels {

// Within 2 units in the last place; 0 below -86, infinity
// above 88.72; NaN stays NaN.
REPRISE_BOTH inline __attribute__((always_inline)) float Exp(float x) {
  constexpr float kLowest = -86.0f, kHighest = 88.722839f, kLog2E = 1.44269504f;
  // ln 2 in two parts, the first short enough that its products below are exact.
  constexpr float kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f;
  // Adding it rounds to an integer in the low bits.
  constexpr float kRound = 12582912.0f;
  const float clamped = x < kLowest ? kLowest : x > kHighest ? kHighest : x;
  const float rounded = clamped * kLog2E + kRound;
  const float n = rounded - kRound;
  const float r = (clamped - n * kLn2High) - n * kLn2Low;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  // 2^n as 2^(n - 1) * 2, so that n = 128 is in range.
  const uint32_t exponent = (std::bit_cast<uint32_t>(rounded) + 126u) << 23;
  const float value = p * std::bit_cast<float>(exponent) * 2.0f;
  return x < kLowest ? 0.0f : x > kHighest ? INFINITY : value;
}

}  // namespace reprise::kernels
