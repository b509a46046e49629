// Rounding without branches in the inner loops, so that they vectorise.
#include "kernels/cpu/quantise.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

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

int Fp8Exponent(const float* x, int64_t n) {
  return Log2Ceil(Amax(x, n, kFp8FloorAmax) * (1.0f / kFp8Max));
}

int Fp4Exponent(const float* x, int64_t n) {
  return Log2Ceil(Amax(x, n, kFp4FloorAmax) * (1.0f / kFp4Max));
}

constexpr int64_t kScaleBytesMultiple = 8;  // of an entry

int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

uint8_t SignBit(float x, int place) {
  return static_cast<uint8_t>(std::bit_cast<uint32_t>(x) >> 31 << place);
}

// x is an e4m3 value.
uint8_t E4m3Code(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x) & 0x7FFFFFFF;
  const float size = std::bit_cast<float>(bits);
  const uint8_t code = size < 0x1.0p-6f ? static_cast<uint8_t>(size * 0x1.0p9f)
                                        : static_cast<uint8_t>((bits >> 20) - (120 << 3));
  return code | SignBit(x, 7);
}

// x is an e2m1 value.
uint8_t E2m1Code(float x) {
  constexpr uint8_t kCodeOfTwice[13] = {0, 1, 2, 3, 4, 0, 5, 0, 6, 0, 0, 0, 7};
  return kCodeOfTwice[static_cast<int>(std::fabs(x) * 2.0f)] | SignBit(x, 3);
}

uint8_t ScaleByte(int exponent) { return static_cast<uint8_t>(exponent + 127); }

// The values of all codes of a format.
template <int kCodes, float (*kWiden)(uint8_t)>
struct CodeTable {
  CodeTable() {
    for (int code = 0; code < kCodes; ++code) value[code] = kWiden(static_cast<uint8_t>(code));
  }
  float value[kCodes];
};

// Rounds n values to e2m1, two a byte, each group of kFp4Group with its own scale.
void EncodeFp4(const float* x, int64_t n, uint8_t* codes, uint8_t* scales) {
  std::fill(codes, codes + CeilDiv(n, 2), uint8_t{0});
  for (int64_t begin = 0; begin < n; begin += kFp4Group) {
    const int64_t end = std::min(n, begin + kFp4Group);
    const int exponent = Fp4Exponent(x + begin, end - begin);
    const float inverse = PowerOfTwo(-exponent);
    for (int64_t i = begin; i < end; ++i) {
      const float value = NearestE2m1(std::clamp(x[i] * inverse, -kFp4Max, kFp4Max));
      codes[i / 2] |= static_cast<uint8_t>(E2m1Code(value) << (i % 2 * 4));
    }
    scales[begin / kFp4Group] = ScaleByte(exponent);
  }
}

}  // namespace

void RoundToBf16(float* x, int64_t n) {
  for (int64_t i = 0; i < n; ++i) x[i] = RoundBf16(x[i]);
}

void QuantiseFp8(const float* x, int64_t n, int64_t group, float* out) {
  for (int64_t begin = 0; begin < n; begin += group) {
    const int64_t end = std::min(n, begin + group);
    const int exponent = Fp8Exponent(x + begin, end - begin);
    const float scale = PowerOfTwo(exponent), inverse = PowerOfTwo(-exponent);
    for (int64_t i = begin; i < end; ++i)
      out[i] = NearestE4m3(std::clamp(x[i] * inverse, -kFp8Max, kFp8Max)) * scale;
  }
}

void QuantiseFp4(float* x, int64_t n) {
  for (int64_t begin = 0; begin < n; begin += kFp4Group) {
    const int64_t end = std::min(n, begin + kFp4Group);
    const int exponent = Fp4Exponent(x + begin, end - begin);
    const float scale = PowerOfTwo(exponent), inverse = PowerOfTwo(-exponent);
    for (int64_t i = begin; i < end; ++i)
      x[i] = NearestE2m1(std::clamp(x[i] * inverse, -kFp4Max, kFp4Max)) * scale;
  }
}

int64_t PackedEntryBytes(int64_t dim, int64_t rope) {
  const int64_t scales = CeilDiv(dim - rope, kFp8KvGroup);
  return dim - rope + 2 * rope + CeilDiv(scales, kScaleBytesMultiple) * kScaleBytesMultiple;
}

void PackEntry(const float* x, int64_t dim, int64_t rope, uint8_t* out) {
  const int64_t plain = dim - rope;
  uint8_t* halves = out + plain;
  uint8_t* scales = halves + 2 * rope;
  for (int64_t begin = 0; begin < plain; begin += kFp8KvGroup) {
    const int64_t end = std::min(plain, begin + kFp8KvGroup);
    const int exponent = Fp8Exponent(x + begin, end - begin);
    const float inverse = PowerOfTwo(-exponent);
    for (int64_t i = begin; i < end; ++i) out[i] = E4m3Code(x[i] * inverse);
    scales[begin / kFp8KvGroup] = ScaleByte(exponent);
  }
  for (int64_t i = 0; i < rope; ++i) {
    const uint16_t half = static_cast<uint16_t>(std::bit_cast<uint32_t>(x[plain + i]) >> 16);
    std::memcpy(halves + 2 * i, &half, sizeof(half));
  }
}

void UnpackEntry(const uint8_t* in, int64_t dim, int64_t rope, float* out) {
  static const CodeTable<256, WidenE4m3> kTable;
  const int64_t plain = dim - rope;
  const uint8_t* halves = in + plain;
  const uint8_t* scales = halves + 2 * rope;
  for (int64_t begin = 0; begin < plain; begin += kFp8KvGroup) {
    const int64_t end = std::min(plain, begin + kFp8KvGroup);
    const float scale = WidenE8m0(scales[begin / kFp8KvGroup]);
    for (int64_t i = begin; i < end; ++i) out[i] = kTable.value[in[i]] * scale;
  }
  for (int64_t i = 0; i < rope; ++i) {
    uint16_t half;
    std::memcpy(&half, halves + 2 * i, sizeof(half));
    out[plain + i] = WidenBf16(half);
  }
}

int64_t PackedKeyBytes(int64_t dim) { return CeilDiv(dim, 2) + CeilDiv(dim, kFp4Group); }

void PackKey(const float* x, int64_t dim, uint8_t* out) {
  EncodeFp4(x, dim, out, out + CeilDiv(dim, 2));
}

void UnpackKey(const uint8_t* in, int64_t dim, float* out) {
  static const CodeTable<16, WidenE2m1> kTable;
  const uint8_t* scales = in + CeilDiv(dim, 2);
  for (int64_t begin = 0; begin < dim; begin += kFp4Group) {
    const int64_t end = std::min(dim, begin + kFp4Group);
    const float scale = WidenE8m0(scales[begin / kFp4Group]);
    for (int64_t i = begin; i < end; ++i)
      out[i] = kTable.value[in[i / 2] >> (i % 2 * 4) & 15] * scale;
  }
}

uint8_t EncodeFp8Tile(const float* x, int64_t stride, int64_t rows, int64_t cols, uint8_t* codes,
                      int64_t code_stride) {
  float amax = kFp8Max * 0x1.0p-126f;
  for (int64_t row = 0; row < rows; ++row) amax = Amax(x + row * stride, cols, amax);
  const int exponent = Log2Ceil(amax * (1.0f / kFp8Max));
  const float inverse = PowerOfTwo(-exponent);
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t i = 0; i < cols; ++i) {
      const float scaled = std::clamp(x[row * stride + i] * inverse, -kFp8Max, kFp8Max);
      codes[row * code_stride + i] = E4m3Code(NearestE4m3(scaled));
    }
  }
  return ScaleByte(exponent);
}

void EncodeFp4Row(const float* x, int64_t n, uint8_t* codes, uint8_t* scales) {
  EncodeFp4(x, n, codes, scales);
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
