// Gates: one thread a token, since a 4 x 4 matrix fits its registers and every step of Sinkhorn
// depends on the last. Mixes: one thread a token and channel, which reads and writes all streams of
// its channel once.
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/mhc.h"
#include "kernels/exp.h"

namespace reprise::kernels::cuda {
namespace {

constexpr int kGateThreads = 64;
constexpr int kMixThreads = 256;

// CUDA kernels

__device__ float Sigmoid(float x) { return 1.0f / (1.0f + Exp(-x)); }

template <int kStreams>
__device__ void SoftmaxRows(float (&c)[kStreams][kStreams], float eps) {
#pragma unroll
  for (int j = 0; j < kStreams; ++j) {
    float max = c[j][0], sum = 0.0f;
#pragma unroll
    for (int k = 1; k < kStreams; ++k) max = fmaxf(max, c[j][k]);
#pragma unroll
    for (int k = 0; k < kStreams; ++k) {
      c[j][k] = Exp(c[j][k] - max);
      sum += c[j][k];
    }
#pragma unroll
    for (int k = 0; k < kStreams; ++k) c[j][k] = c[j][k] / sum + eps;
  }
}

template <int kStreams>
__device__ void NormaliseRows(float (&c)[kStreams][kStreams], float eps) {
#pragma unroll
  for (int j = 0; j < kStreams; ++j) {
    float sum = 0.0f;
#pragma unroll
    for (int k = 0; k < kStreams; ++k) sum += c[j][k];
#pragma unroll
    for (int k = 0; k < kStreams; ++k) c[j][k] /= sum + eps;
  }
}

template <int kStreams>
__device__ void NormaliseColumns(float (&c)[kStreams][kStreams], float eps) {
#pragma unroll
  for (int k = 0; k < kStreams; ++k) {
    float sum = 0.0f;
#pragma unroll
    for (int j = 0; j < kStreams; ++j) sum += c[j][k];
#pragma unroll
    for (int j = 0; j < kStreams; ++j) c[j][k] /= sum + eps;
  }
}

template <int kStreams>
__global__ void __launch_bounds__(kGateThreads) GatesKernel(HcGatesParams params) {
  const int64_t token = static_cast<int64_t>(blockIdx.x) * kGateThreads + threadIdx.x;
  if (token >= params.tokens) return;
  const float* u = params.u + token * (2 + kStreams) * kStreams;
  const float* base = params.base;
  HcGates& gates = params.gates[token];
  float mix[kStreams][kStreams];
#pragma unroll
  for (int p = 0; p < kStreams; ++p) {
    gates.pre[p] = Sigmoid(params.scale[0] * u[p] + base[p]) + params.eps;
    gates.post[p] = 2.0f * Sigmoid(params.scale[1] * u[kStreams + p] + base[kStreams + p]);
#pragma unroll
    for (int k = 0; k < kStreams; ++k) {
      const int at = (2 + p) * kStreams + k;
      mix[p][k] = params.scale[2] * u[at] + base[at];
    }
  }
  SoftmaxRows(mix, params.eps);
  NormaliseColumns(mix, params.eps);
  for (int i = 1; i < params.sinkhorn_iterations; ++i) {
    NormaliseRows(mix, params.eps);
    NormaliseColumns(mix, params.eps);
  }
#pragma unroll
  for (int j = 0; j < kStreams; ++j) {
#pragma unroll
    for (int k = 0; k < kStreams; ++k) gates.mix[j * kStreams + k] = mix[j][k];
  }
}

__global__ void __launch_bounds__(kMixThreads) CollapseKernel(HcMixParams params) {
  const int64_t at = static_cast<int64_t>(blockIdx.x) * kMixThreads + threadIdx.x;
  if (at >= params.tokens * params.dim) return;
  const int64_t token = at / params.dim, channel = at % params.dim;
  const HcGates& gates = params.gates[token];
  const float* residual = params.residual + token * params.streams * params.dim + channel;
  float sum = gates.pre[0] * residual[0];
  for (int p = 1; p < params.streams; ++p) sum += gates.pre[p] * residual[p * params.dim];
  params.hidden[at] = sum;
}

__global__ void __launch_bounds__(kMixThreads) ExpandKernel(HcMixParams params) {
  const int64_t at = static_cast<int64_t>(blockIdx.x) * kMixThreads + threadIdx.x;
  if (at >= params.tokens * params.dim) return;
  const int64_t token = at / params.dim, channel = at % params.dim;
  const HcGates& gates = params.gates[token];
  float* residual = params.residual + token * params.streams * params.dim + channel;
  const float y = params.hidden[at];
  float old[kMaxStreams];
  for (int j = 0; j < params.streams; ++j) old[j] = residual[j * params.dim];
  for (int k = 0; k < params.streams; ++k) {
    float sum = gates.post[k] * y;
    for (int j = 0; j < params.streams; ++j) sum += gates.mix[j * params.streams + k] * old[j];
    residual[k * params.dim] = sum;
  }
}

template <int kStreams>
absl::Status LaunchGates(const HcGatesParams& params, cudaStream_t stream) {
  return Launch<NoShared>("HcMakeGates", GatesKernel<kStreams>,
                          {Blocks(params.tokens, kGateThreads)}, kGateThreads, params, stream);
}

// With the streams that a mix can do.
absl::Status LaunchMix(const char* name, void (*kernel)(HcMixParams), const HcMixParams& params,
                       cudaStream_t stream) {
  const absl::Status checked =
      Require(params.streams >= 1 && params.streams <= kMaxStreams, name, "1 to 8 streams");
  if (!checked.ok()) return checked;
  return Launch<NoShared>(name, kernel, {Blocks(params.tokens * params.dim, kMixThreads)},
                          kMixThreads, params, stream);
}

}  // namespace

// kernel launchers

absl::Status HcMakeGates(const HcGatesParams& params, cudaStream_t stream) {
  switch (params.streams) {
    case 1:
      return LaunchGates<1>(params, stream);
    case 2:
      return LaunchGates<2>(params, stream);
    case 3:
      return LaunchGates<3>(params, stream);
    case 4:
      return LaunchGates<4>(params, stream);
    case 5:
      return LaunchGates<5>(params, stream);
    case 6:
      return LaunchGates<6>(params, stream);
    case 7:
      return LaunchGates<7>(params, stream);
    case 8:
      return LaunchGates<8>(params, stream);
    default:
      return Require(false, "HcMakeGates", "1 to 8 streams");
  }
}

absl::Status HcCollapse(const HcMixParams& params, cudaStream_t stream) {
  return LaunchMix("HcCollapse", CollapseKernel, params, stream);
}

absl::Status HcExpand(const HcMixParams& params, cudaStream_t stream) {
  return LaunchMix("HcExpand", ExpandKernel, params, stream);
}

}  // namespace reprise::kernels::cuda
