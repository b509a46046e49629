// A matrix as a checkpoint stores it, for processors and devices.
#pragma once

#include <cstdint>

namespace reprise::kernels {

// As stored. kFp8: e4m3, one scale for a block of 128 x 128. kFp4: e2m1, two a byte with the even
// column in the low half, one scale for 32 columns of a row.
enum class WeightType : uint8_t { kF32, kBf16, kFp8, kFp4 };

inline constexpr int64_t kFp8ScaleBlock = 128;
inline constexpr int64_t kFp4ScaleBlock = 32;
// A scale byte b is 2^(b - 127); larger ones would overflow on the way and are none.
inline constexpr uint8_t kScaleByteMax = 246;

// Rows of a matrix that products read; `data` is row major with `cols` elements a row.
struct Weight {
  const void* data = nullptr;
  WeightType type = WeightType::kF32;
  int64_t rows = 0;
  int64_t cols = 0;
  // kFp8: [ceil(rows / 128), scale_cols]; kFp4: [rows, scale_cols]
  const uint8_t* scales = nullptr;
  int64_t scale_cols = 0;
  int64_t first_row = 0;  // row 0 is this row of `data` and `scales`

  // Rows [first, first + count).
  Weight Rows(int64_t first, int64_t count) const {
    Weight part = *this;
    part.first_row += first;
    part.rows = count;
    return part;
  }
};

}  // namespace reprise::kernels
