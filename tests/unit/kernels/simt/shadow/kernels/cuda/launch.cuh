// What kernels/cuda/launch.cuh declares, for the machine of machine.h: this folder stands before
// the project's in the search path of the sources that the machine runs.
#pragma once

#include <cuda_runtime_api.h>

#include "absl/status/status.h"
#include "kernels/cuda/grid.h"
#include "tests/unit/kernels/simt/machine.h"

namespace reprise::kernels::cuda {

struct NoShared {};

template <typename Plan>
Plan& Shared() {
  return *static_cast<Plan*>(simt::SharedMemory(sizeof(Plan)));
}

template <typename Plan, typename Params>
absl::Status Launch(const char* name, void (*kernel)(Params), const Grid& grid, int threads,
                    const Params& params, cudaStream_t) {
  if (grid.empty()) return absl::OkStatus();
  if (absl::Status checked = CheckGrid(name, grid); !checked.ok()) return checked;
  return simt::Run(name, grid, threads, sizeof(Plan), [kernel, params] { kernel(params); });
}

}  // namespace reprise::kernels::cuda
