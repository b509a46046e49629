// Manifold-constrained hyper-connections on the device: the gates of many tokens with their
// Sinkhorn normalisation, and the two mixes of the residual streams. Shapes as in
// kernels/cpu/mhc.h, with a leading [tokens].
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "absl/status/status.h"

namespace reprise::kernels::cuda {

inline constexpr int kMaxStreams = 8;

// Gates of one token, as the device keeps them; the same layout as the CPU's HcGates.
struct HcGates {
  float pre[kMaxStreams];
  float post[kMaxStreams];
  float mix[kMaxStreams * kMaxStreams];  // [from][to], rows of `streams`
};

// Pointers are of the device.
struct HcGatesParams {
  const float* u = nullptr;     // [tokens, (2 + streams) * streams], times the norm's scale already
  const float* base = nullptr;  // [(2 + streams) * streams]
  const float* scale = nullptr;  // [3]: pre, post, mix
  HcGates* gates = nullptr;      // [tokens]
  int64_t tokens = 0;
  int streams = 4;
  int sinkhorn_iterations = 20;
  float eps = 1e-6f;
};
struct HcMixParams {
  const HcGates* gates = nullptr;  // [tokens]
  float* residual = nullptr;       // [tokens, streams, dim]
  float* hidden = nullptr;         // [tokens, dim]: written by HcCollapse, read by HcExpand
  int64_t tokens = 0, dim = 0;
  int streams = 4;
};

// Each queues its work on `stream`; errors are of the launch, INVALID_ARGUMENT for more than
// kMaxStreams. Nothing happens for no tokens.
absl::Status HcMakeGates(const HcGatesParams& params, cudaStream_t stream);
// hidden = sum_p pre[p] * residual[p].
absl::Status HcCollapse(const HcMixParams& params, cudaStream_t stream);
// residual[k] = post[k] * hidden + sum_j mix[j][k] * residual[j], in place.
absl::Status HcExpand(const HcMixParams& params, cudaStream_t stream);

}  // namespace reprise::kernels::cuda
