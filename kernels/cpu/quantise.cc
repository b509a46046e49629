// Rounding without branches in the inner loops, so that they vectorise.
#include "kernels/cpu/quantise.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "kernels/formats.h"

namespace reprise::kernels::cpu {
namespace {

float Amax(const float* x, int64_t n, float floor) {
  float amax = floor;
  for (int64_t i = 0; i < n; ++i) amax = std::max(amax, std::fabs(x[i]));
  return amax;
}

int GroupExponent8(const float* x, int64_t n) { return Fp8Exponent(Amax(x, n, kFp8FloorAmax)); }
int GroupExponent4(const float* x, int64_t n) { return Fp4Exponent(Amax(x, n, kFp4FloorAmax)); }

constexpr int64_t kScaleBytesMultiple = 8;  // of an entry

int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

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
    const int exponent = GroupExponent4(x + begin, end - begin);
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
    const int exponent = GroupExponent8(x + begin, end - begin);
    const float scale = PowerOfTwo(exponent), inverse = PowerOfTwo(-exponent);
    for (int64_t i = begin; i < end; ++i)
      out[i] = NearestE4m3(std::clamp(x[i] * inverse, -kFp8Max, kFp8Max)) * scale;
  }
}

void QuantiseFp4(float* x, int64_t n) {
  for (int64_t begin = 0; begin < n; begin += kFp4Group) {
    const int64_t end = std::min(n, begin + kFp4Group);
    const int exponent = GroupExponent4(x + begin, end - begin);
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
    const int exponent = GroupExponent8(x + begin, end - begin);
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
  const int exponent = Fp8Exponent(amax);
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
