// Rounding without branches in the inner loops, so that they vectorise.
#include "kernels/cpu/quantise.h"

#include <algorithm>
#include <bit>
#include <cmath>

#include "kernels/cpu/formats.h"

namespace reprise::kernels::cpu {
namespace {

constexpr float kFp8Max = 448.0f, kFp8FloorAmax = 1e-4f;
constexpr float kFp4Max = 6.0f, kFp4FloorAmax = 6.0f * 0x1.0p-126f;

float Amax(const float* x, int64_t n, float floor) {
  float amax = floor;
  for (int64_t i = 0; i < n; ++i) amax = std::max(amax, std::fabs(x[i]));
  return amax;
}

// The exponent of the least power of two >= x, from the bits of a positive normal float.
int Log2Ceil(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  return static_cast<int>(bits >> 23) - 127 + ((bits & 0x7FFFFF) != 0 ? 1 : 0);
}

float PowerOfTwo(int exponent) { return std::ldexp(1.0f, exponent); }

// Nearest e4m3, ties to even; |x| <= 448.
inline float NearestE4m3(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  const float normal = std::bit_cast<float>((bits + 0x7FFFF + ((bits >> 20) & 1)) & 0xFFF00000u);
  // Below 2^-6 the grid is 2^-9: the unit in the last place of 1.5 * 2^14.
  constexpr float kGrid = 0x1.8p14f;
  const float subnormal = (x + kGrid) - kGrid;
  return std::fabs(x) < 0x1.0p-6f ? subnormal : normal;
}

// Nearest e2m1, ties to even; |x| <= 6.
inline float NearestE2m1(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  const float normal = std::bit_cast<float>((bits + 0x1FFFFF + ((bits >> 22) & 1)) & 0xFFC00000u);
  constexpr float kGrid = 0x1.8p22f;  // below 1 the grid is 0.5
  const float subnormal = (x + kGrid) - kGrid;
  return std::fabs(x) < 1.0f ? subnormal : normal;
}

}  // namespace

void RoundToBf16(float* x, int64_t n) {
  for (int64_t i = 0; i < n; ++i) x[i] = RoundBf16(x[i]);
}

void QuantiseFp8(const float* x, int64_t n, int64_t group, float* out) {
  for (int64_t begin = 0; begin < n; begin += group) {
    const int64_t end = std::min(n, begin + group);
    const int exponent = Log2Ceil(Amax(x + begin, end - begin, kFp8FloorAmax) * (1.0f / kFp8Max));
    const float scale = PowerOfTwo(exponent), inverse = PowerOfTwo(-exponent);
    for (int64_t i = begin; i < end; ++i)
      out[i] = NearestE4m3(std::clamp(x[i] * inverse, -kFp8Max, kFp8Max)) * scale;
  }
}

void QuantiseFp4(float* x, int64_t n) {
  for (int64_t begin = 0; begin < n; begin += kFp4Group) {
    const int64_t end = std::min(n, begin + kFp4Group);
    const int exponent = Log2Ceil(Amax(x + begin, end - begin, kFp4FloorAmax) * (1.0f / kFp4Max));
    const float scale = PowerOfTwo(exponent), inverse = PowerOfTwo(-exponent);
    for (int64_t i = begin; i < end; ++i)
      x[i] = NearestE2m1(std::clamp(x[i] * inverse, -kFp4Max, kFp4Max)) * scale;
  }
}

void Hadamard(float* x, int64_t n) {
  for (int64_t half = 1; half < n; half *= 2) {
    for (int64_t begin = 0; begin < n; begin += 2 * half) {
      for (int64_t i = begin; i < begin + half; ++i) {
        const float a = x[i], b = x[i + half];
        x[i] = a + b;
        x[i + half] = a - b;
      }
    }
  }
  const float scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(n)));
  for (int64_t i = 0; i < n; ++i) x[i] *= scale;
}

}  // namespace reprise::kernels::cpu
