// The experts' activation on the device: clamp, then silu(gate) * up, times a routing weight a row.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "absl/status/status.h"

namespace reprise::kernels::cuda {

// Pointers are of the device.
struct SwiGluParams {
  const float* gate = nullptr;     // [rows, n]
  const float* up = nullptr;       // [rows, n]
  const float* weights = nullptr;  // [rows]; nullptr = 1
  float* out = nullptr;            // [rows, n]; may be `gate` or `up`
  int64_t rows = 0, n = 0;
  float limit = 0.0f;  // gate is cut above, up on both sides
};

// Queues it on `stream`; errors are of the launch. Nothing happens for no rows.
absl::Status SwiGlu(const SwiGluParams& params, cudaStream_t stream);

}  // namespace reprise::kernels::cuda
