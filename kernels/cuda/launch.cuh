// How a kernel is started and how it finds its shared memory: one params struct by value, and one
// plan struct for all of a block's shared memory, whose size the launch asks for.
#pragma once

#include <cuda_runtime.h>

#include "absl/status/status.h"
#include "kernels/cuda/grid.h"

namespace reprise::kernels::cuda {

// The plan of a kernel without shared memory.
struct NoShared {};

// The block's shared memory; undefined at first. REQUIRES: the launch had the same Plan.
template <typename Plan>
__device__ Plan& Shared() {
  extern __shared__ __align__(1024) unsigned char bytes[];  // as swizzled tiles need it
  return *reinterpret_cast<Plan*>(bytes);
}

// Shared memory that a kernel has without asking for more.
inline constexpr size_t kSharedByDefault = 48 << 10;

// Queues kernel(params) on `stream`, `threads` a block; nothing for an empty grid. Errors are of
// the launch and name the kernel.
template <typename Plan, typename Params>
absl::Status Launch(const char* name, void (*kernel)(Params), const Grid& grid, int threads,
                    const Params& params, cudaStream_t stream) {
  if (grid.empty()) return absl::OkStatus();
  if (absl::Status checked = CheckGrid(name, grid); !checked.ok()) return checked;
  constexpr size_t kShared = std::is_empty_v<Plan> ? 0 : sizeof(Plan);
  if constexpr (kShared > kSharedByDefault) {
    const cudaError_t error = cudaFuncSetAttribute(
        kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(kShared));
    if (error != cudaSuccess) return CudaStatus(error, name);
  }
  const dim3 blocks(static_cast<unsigned>(grid.x), static_cast<unsigned>(grid.y),
                    static_cast<unsigned>(grid.z));
  kernel<<<blocks, static_cast<unsigned>(threads), kShared, stream>>>(params);
  return CudaStatus(cudaGetLastError(), name);
}

}  // namespace reprise::kernels::cuda
