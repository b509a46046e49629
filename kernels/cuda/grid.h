// Shapes of launches, and launch errors as one clear line.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "absl/status/status.h"

namespace reprise::kernels::cuda {

// Blocks of `per_block` that hold n.
constexpr int64_t Blocks(int64_t n, int64_t per_block) { return (n + per_block - 1) / per_block; }

// The blocks of a launch, x fastest.
struct Grid {
  int64_t x = 1, y = 1, z = 1;
  bool empty() const { return x <= 0 || y <= 0 || z <= 0; }
};

// INVALID_ARGUMENT, naming the kernel, for more blocks than a launch can have.
absl::Status CheckGrid(const char* kernel, const Grid& grid);
// INVALID_ARGUMENT, naming the kernel and what it `needs`, where that does not `hold`.
absl::Status Require(bool hold, const char* kernel, const char* needs);

// OK, or one line that names `what`: RESOURCE_EXHAUSTED for memory, UNAVAILABLE where no device or
// driver is, INVALID_ARGUMENT for a configuration that the device cannot do, else INTERNAL.
absl::Status CudaStatus(cudaError_t error, const char* what);

}  // namespace reprise::kernels::cuda
