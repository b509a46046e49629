// The activation rounding that quantised DeepSeek-V4 checkpoints were trained with: bfloat16, FP8 (e4m3) and FP4 (e2m1)
// with power-of-two scales, and the Hadamard transform before FP4. Values are rounded and kept as float32.
#pragma once

#include <cstdint>

namespace reprise::kernels::cpu {

inline constexpr int64_t kFp8Group = 128;   // of a matrix product's input
inline constexpr int64_t kFp8KvGroup = 64;  // of a key-value entry
inline constexpr int64_t kFp4Group = 32;

// x[n] to the nearest bfloat16, ties to even, in place.
void RoundToBf16(float* x, int64_t n);

// Each `group` consecutive elements (the last group may be shorter) become e4m3 multiples of their own scale, the least
// power of two >= max(|x|, 1e-4) / 448. `out` may be `x`.
void QuantiseFp8(const float* x, int64_t n, int64_t group, float* out);

// As above with e2m1 and max(|x|, 6 * 2^-126) / 6, groups of kFp4Group, in place.
void QuantiseFp4(float* x, int64_t n);

// Walsh-Hadamard transform in natural order times n^-0.5, in place. REQUIRES: n is a power of two.
void Hadamard(float* x, int64_t n);

}  // namespace reprise::kernels::cpu
