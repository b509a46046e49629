// One block a row, one warp a group of 128: four values a lane, so that a warp reads and writes
// whole lines. Memory-bound: with the norm a row is read twice, the second time from L1 or L2.
#include "kernels/cuda/quantise.h"

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/quantise.cuh"

namespace reprise::kernels::cuda {
namespace {

constexpr int kPerLane = kFp8Group / kWarp;

struct Plan {
  float partial[kRowThreads / kWarp];
};

// CUDA kernels

// value(i) is element i of the row.
template <typename Value>
__device__ void QuantiseRow(const Fp8Rows& out, int64_t row, int64_t n, const Value& value) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int64_t groups = (n + kFp8Group - 1) / kFp8Group;
  for (int64_t group = threadIdx.x / kWarp; group < groups; group += kRowThreads / kWarp) {
    const int64_t begin = group * kFp8Group + lane;
    float values[kPerLane];
    uint8_t codes[kPerLane];
#pragma unroll
    for (int i = 0; i < kPerLane; ++i)
      values[i] = begin + i * kWarp < n ? value(begin + i * kWarp) : 0.0f;
    const uint8_t scale = EncodeFp8Group(values, codes);
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) {
      if (begin + i * kWarp < n) out.codes[row * n + begin + i * kWarp] = codes[i];
    }
    if (lane == 0) out.scales[row * groups + group] = scale;
  }
}

__global__ void __launch_bounds__(kRowThreads) QuantiseKernel(QuantiseParams params) {
  const int64_t row = blockIdx.x;
  const float* x = params.x + row * params.n;
  QuantiseRow(params.out, row, params.n, [x](int64_t i) { return x[i]; });
}

__global__ void __launch_bounds__(kRowThreads) RmsNormQuantiseKernel(RmsNormQuantiseParams params) {
  Plan& plan = Shared<Plan>();
  const int64_t row = blockIdx.x;
  const float* x = params.x + row * params.n;
  float* kept = params.normalised == nullptr ? nullptr : params.normalised + row * params.n;
  const float* weight = params.weight;
  float sum = 0.0f;
  for (int64_t i = threadIdx.x; i < params.n; i += kRowThreads) sum += x[i] * x[i];
  const float mean = BlockSum(sum, plan.partial) / static_cast<float>(params.n);
  const float scale = 1.0f / sqrtf(mean + params.eps);
  QuantiseRow(params.out, row, params.n, [=](int64_t i) {
    const float value = RoundBf16(weight[i] * (x[i] * scale));
    if (kept != nullptr) kept[i] = value;
    return value;
  });
}

}  // namespace

// kernel launchers

absl::Status QuantiseFp8(const QuantiseParams& params, cudaStream_t stream) {
  return Launch<NoShared>("QuantiseFp8", QuantiseKernel, {params.rows}, kRowThreads, params,
                          stream);
}

absl::Status RmsNormQuantise(const RmsNormQuantiseParams& params, cudaStream_t stream) {
  return Launch<Plan>("RmsNormQuantise", RmsNormQuantiseKernel, {params.rows}, kRowThreads, params,
                      stream);
}

}  // namespace reprise::kernels::cuda
