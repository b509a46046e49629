// The activation rounding that quantised DeepSeek-V4 checkpoints were trained with: bfloat16, FP8
// (e4m3) and FP4 (e2m1) with power-of-two scales, and the Hadamard transform before FP4. Values are
// rounded and kept as float32.
#pragma once

#include <cstdint>

namespace reprise::kernels::cpu {

inline constexpr int64_t kFp8Group = 128;   // of a matrix product's input
inline constexpr int64_t kFp8KvGroup = 64;  // of a key-value entry
inline constexpr int64_t kFp4Group = 32;

// x[n] to the nearest bfloat16, ties to even, in place.
void RoundToBf16(float* x, int64_t n);

// Each `group` consecutive elements (the last group may be shorter) become e4m3 multiples of their
// own scale, the least power of two >= max(|x|, 1e-4) / 448. `out` may be `x`.
void QuantiseFp8(const float* x, int64_t n, int64_t group, float* out);

// As above with e2m1 and max(|x|, 6 * 2^-126) / 6, groups of kFp4Group, in place.
void QuantiseFp4(float* x, int64_t n);

// What QuantiseFp8 and QuantiseFp4 leave, in the bytes that it needs: the values come back bit for
// bit.
//
// A key-value entry of `dim` channels, of which the last `rope` are bfloat16: e4m3 codes, bfloat16
// values, one scale byte for kFp8KvGroup codes, padded to 8 scale bytes. 448 + 128 + 8 = 584 bytes
// for 512 channels with 64 rotary.
int64_t PackedEntryBytes(int64_t dim, int64_t rope);
// REQUIRES: QuantiseFp8(x, dim - rope, kFp8KvGroup, .) would change nothing, and the rest is
// rounded to bfloat16.
void PackEntry(const float* x, int64_t dim, int64_t rope, uint8_t* out);
void UnpackEntry(const uint8_t* in, int64_t dim, int64_t rope, float* out);
// An indexer key of `dim` channels: two e2m1 codes a byte, one scale byte for kFp4Group codes. 64 +
// 4 = 68 bytes for 128.
int64_t PackedKeyBytes(int64_t dim);
// REQUIRES: QuantiseFp4(x, dim) would change nothing.
void PackKey(const float* x, int64_t dim, uint8_t* out);
void UnpackKey(const uint8_t* in, int64_t dim, float* out);

// Weights of a checkpoint. A tile of rows x cols float32, both at most 128, rows `stride` apart, to
// e4m3 codes, rows `code_stride` apart; returns the byte b of its scale 2^(b - 127), the least
// power of two >= max(|x|, 448 * 2^-126) / 448. Values must be finite.
uint8_t EncodeFp8Tile(const float* x, int64_t stride, int64_t rows, int64_t cols, uint8_t* codes,
                      int64_t code_stride);
// A row of n values to e2m1 codes, two a byte with the even column low, and one scale byte for each
// kFp4Group columns, chosen as in QuantiseFp4. Values must be finite.
void EncodeFp4Row(const float* x, int64_t n, uint8_t* codes, uint8_t* scales);

// Walsh-Hadamard transform in natural order times n^-0.5, in place. REQUIRES: n is a power of two.
void Hadamard(float* x, int64_t n);

}  // namespace reprise::kernels::cpu
