// Root-mean-square norm of rows on the device: out = w * x / sqrt(mean(x^2) + eps).
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "absl/status/status.h"

namespace reprise::kernels::cuda {

// Pointers are of the device.
struct RmsNormParams {
  const float* x = nullptr;       // [rows, n]
  const float* weight = nullptr;  // [n]; nullptr for the unweighted form
  float* out = nullptr;           // [rows, n]; may be `x`
  int64_t rows = 0, n = 0;
  float eps = 1e-6f;
};

// Queues it on `stream`; errors are of the launch. Nothing happens for no rows.
absl::Status RmsNorm(const RmsNormParams& params, cudaStream_t stream);

}  // namespace reprise::kernels::cuda
