// One block a row. Memory-bound: a row is read twice, the second time from L2 or L1 for the widths
// of the model (28 KiB at 7168), and written once.
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/reduce.cuh"
#include "kernels/cuda/rmsnorm.h"

namespace reprise::kernels::cuda {
namespace {

struct Plan {
  float partial[kRowThreads / kWarp];
};

// CUDA kernels

__global__ void __launch_bounds__(kRowThreads) RmsNormKernel(RmsNormParams params) {
  Plan& plan = Shared<Plan>();
  const int64_t row = blockIdx.x;
  const float* x = params.x + row * params.n;
  float* out = params.out + row * params.n;
  float sum = 0.0f;
  for (int64_t i = threadIdx.x; i < params.n; i += kRowThreads) sum += x[i] * x[i];
  const float mean = BlockSum(sum, plan.partial) / static_cast<float>(params.n);
  const float scale = 1.0f / sqrtf(mean + params.eps);
  for (int64_t i = threadIdx.x; i < params.n; i += kRowThreads) {
    const float value = x[i] * scale;
    out[i] = params.weight == nullptr ? value : params.weight[i] * value;
  }
}

}  // namespace

// kernel launchers

absl::Status RmsNorm(const RmsNormParams& params, cudaStream_t stream) {
  return Launch<Plan>("RmsNorm", RmsNormKernel, {params.rows}, kRowThreads, params, stream);
}

}  // namespace reprise::kernels::cuda
