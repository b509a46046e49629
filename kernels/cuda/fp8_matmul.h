// y = x . W^T on the tensor cores of compute capability 9.0: FP8 rows against an FP8 matrix with
// block scales. Every 128 columns are summed by the tensor cores, scaled, and added in float32, so
// that y differs from Matmul's (matmul.h) by what the tensor cores round in 128 columns.
#pragma once

#include <cuda_runtime_api.h>

#include "absl/status/status.h"
#include "kernels/cuda/matmul.h"

namespace reprise::kernels::cuda {

// Queues it on `stream`. INVALID_ARGUMENT for inputs or weights that are not FP8, more than one
// group, columns that are no multiple of 16, or rows of x that do not begin at multiples of 16
// bytes; FAILED_PRECONDITION on another device; other errors are of the launch.
absl::Status Fp8Matmul(const MatmulParams& params, cudaStream_t stream);

}  // namespace reprise::kernels::cuda
