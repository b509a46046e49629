#include "kernels/cuda/grid.h"

#include <fmt/format.h>

namespace reprise::kernels::cuda {
namespace {

constexpr int64_t kGridXMax = 2'147'483'647, kGridYzMax = 65'535;

absl::StatusCode CodeOf(cudaError_t error) {
  switch (error) {
    case cudaErrorMemoryAllocation:
      return absl::StatusCode::kResourceExhausted;
    case cudaErrorNoDevice:
    case cudaErrorInsufficientDriver:
      return absl::StatusCode::kUnavailable;
    case cudaErrorInvalidValue:
    case cudaErrorInvalidConfiguration:
      return absl::StatusCode::kInvalidArgument;
    default:
      return absl::StatusCode::kInternal;
  }
}

}  // namespace

absl::Status CheckGrid(const char* kernel, const Grid& grid) {
  if (grid.x <= kGridXMax && grid.y <= kGridYzMax && grid.z <= kGridYzMax) return absl::OkStatus();
  return absl::InvalidArgumentError(
      fmt::format("{}: {} x {} x {} blocks; possible: {} x {} x {}; use smaller batches", kernel,
                  grid.x, grid.y, grid.z, kGridXMax, kGridYzMax, kGridYzMax));
}

absl::Status Require(bool hold, const char* kernel, const char* needs) {
  if (hold) return absl::OkStatus();
  return absl::InvalidArgumentError(fmt::format("{}: needs {}", kernel, needs));
}

absl::Status CudaStatus(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return absl::OkStatus();
  return absl::Status(CodeOf(error),
                      fmt::format("{}: CUDA says {} ({})", what, cudaGetErrorString(error),
                                  static_cast<int>(error)));
}

}  // namespace reprise::kernels::cuda
