// Manifold-constrained hyper-connections of one token: the residual is `streams` vectors of `dim`,
// read by gates, written back through a doubly-stochastic mixing matrix that Sinkhorn normalisation
// makes.
#pragma once

#include <cstdint>

namespace reprise::kernels::cpu {

inline constexpr int64_t kMaxStreams = 8;

struct HcParams {
  int64_t streams = 4;
  int64_t sinkhorn_iterations = 20;
  float eps = 1e-6f;
};

struct HcGates {
  float pre[kMaxStreams];                // weights of the streams in the sublayer's input
  float post[kMaxStreams];               // weights of the sublayer's output in the streams
  float mix[kMaxStreams * kMaxStreams];  // [from][to], rows and columns sum to about 1
};

// Gates of `count` tokens. `u` has, for each, the projection (fn . residual) of [(2 + streams) *
// streams], already times the norm's scale; `base` has that length; `scale` is [3]: pre, post, mix.
void HcMakeGates(const HcParams& params, const float* u, int64_t count, const float* base,
                 const float* scale, HcGates* gates);

// The output head's gates: pre[p] = sigmoid(scale * u[p] + base[p]) + eps.
void HcHeadGates(const HcParams& params, const float* u, const float* base, float scale,
                 float* pre);

// out[dim] = sum_p pre[p] * residual[p][dim].
void HcCollapse(const float* residual, const float* pre, int64_t streams, int64_t dim, float* out);

// residual[k] = post[k] * y + sum_j mix[j][k] * residual[j], in place.
void HcExpand(const float* y, const HcGates& gates, int64_t streams, int64_t dim, float* residual);

}  // namespace reprise::kernels::cpu
