// Rows to FP8 with power-of-two scales on the device, alone or behind the norm that makes them. The
// codes and scales are those of kernels/cpu/quantise.h for the same values.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "absl/status/status.h"

namespace reprise::kernels::cuda {

inline constexpr int kFp8Group = 128;  // of a matrix product's input

// FP8 values of rows, as products read them. Pointers are of the device.
struct Fp8Rows {
  uint8_t* codes = nullptr;   // [rows, n] e4m3
  uint8_t* scales = nullptr;  // [rows, ceil(n / kFp8Group)]: b is 2^(b - 127)
};

struct QuantiseParams {
  const float* x = nullptr;  // [rows, n]
  Fp8Rows out;
  int64_t rows = 0, n = 0;
};

struct RmsNormQuantiseParams {
  const float* x = nullptr;       // [rows, n]
  const float* weight = nullptr;  // [n]
  float* normalised = nullptr;    // [rows, n], rounded to bfloat16; may be `x`; nullptr: not kept
  Fp8Rows out;                    // of `normalised`
  int64_t rows = 0, n = 0;
  float eps = 1e-6f;
};

// Each queues its work on `stream`; errors are of the launch. Nothing happens for no rows.
absl::Status QuantiseFp8(const QuantiseParams& params, cudaStream_t stream);
// w * x / sqrt(mean(x^2) + eps), to bfloat16, to FP8.
absl::Status RmsNormQuantise(const RmsNormQuantiseParams& params, cudaStream_t stream);

}  // namespace reprise::kernels::cuda
