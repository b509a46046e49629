// One element a thread: memory-bound, three transfers an element.
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/swiglu.h"
#include "kernels/exp.h"

namespace reprise::kernels::cuda {
namespace {

constexpr int kThreads = 256;

// CUDA kernels

__global__ void __launch_bounds__(kThreads) SwiGluKernel(SwiGluParams params) {
  const int64_t at = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (at >= params.rows * params.n) return;
  const float gate = fminf(params.gate[at], params.limit);
  const float up = fminf(fmaxf(params.up[at], -params.limit), params.limit);
  const float weight = params.weights == nullptr ? 1.0f : params.weights[at / params.n];
  params.out[at] = gate / (1.0f + Exp(-gate)) * up * weight;
}

}  // namespace

// kernel launchers

absl::Status SwiGlu(const SwiGluParams& params, cudaStream_t stream) {
  return Launch<NoShared>("SwiGlu", SwiGluKernel, {Blocks(params.rows * params.n, kThreads)},
                          kThreads, params, stream);
}

}  // namespace reprise::kernels::cuda
