// One warp a token: the scores lie in shared memory, and the k best are k passes over them, each a
// maximum over the warp. At 256 experts and k = 6 that is 48 shared loads a lane, less than reading
// the logits costs.
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/reduce.cuh"
#include "kernels/cuda/router.h"

namespace reprise::kernels::cuda {
namespace {

constexpr float kNone = -INFINITY;
constexpr float kSoftplusThreshold = 20.0f;  // above it softplus(z) is z
constexpr float kTiny = 1e-20f;  // keeps the division defined when every chosen score is 0

struct Plan {
  float scores[kMaxExperts];
  float sums[kMaxExperts];
  int picked[kMaxChosen];
};

// CUDA kernels

__device__ float SqrtSoftplus(float z) {
  return sqrtf(z > kSoftplusThreshold ? z : log1pf(expf(z)));
}

// Some expert in any case, also when no sum is a number.
__device__ int BestExpert(const float* sums, int experts) {
  Scored best{kNone, experts - 1};
  for (int e = static_cast<int>(threadIdx.x); e < experts; e += kWarp) {
    best = Better(best, Scored{sums[e], e});
  }
  return WarpBest(best).index;
}

__global__ void __launch_bounds__(kWarp) RouteKernel(RouteParams params) {
  auto& [scores, sums, picked] = Shared<Plan>();
  const int64_t token = blockIdx.x;
  const int lane = static_cast<int>(threadIdx.x);
  const float* logits = params.logits + token * params.experts;
  for (int e = lane; e < params.experts; e += kWarp) {
    scores[e] = SqrtSoftplus(logits[e]);
    if (params.table == nullptr) sums[e] = scores[e] + params.bias[e];
  }
  __syncwarp();
  for (int i = 0; i < params.k; ++i) {
    const int expert =
        params.table != nullptr
            ? static_cast<int>(params.table[params.ids[token] * static_cast<int64_t>(params.k) + i])
            : BestExpert(sums, params.experts);
    __syncwarp();
    if (lane == 0) {
      picked[i] = expert;
      if (params.table == nullptr) sums[expert] = kNone;
    }
    __syncwarp();
  }
  if (lane != 0) return;
  float sum = 0.0f;
  for (int i = 0; i < params.k; ++i) sum += scores[picked[i]];
  for (int i = 0; i < params.k; ++i) {
    const float score = params.normalise ? scores[picked[i]] / (sum + kTiny) : scores[picked[i]];
    params.chosen[token * params.k + i] = static_cast<uint16_t>(picked[i]);
    params.weights[token * params.k + i] = params.scale * score;
  }
}

}  // namespace

// kernel launchers

absl::Status Route(const RouteParams& params, cudaStream_t stream) {
  const absl::Status checked = Require(
      params.experts >= 1 && params.experts <= kMaxExperts && params.k >= 1 &&
          params.k <= kMaxChosen && params.k <= params.experts &&
          (params.table != nullptr ? params.ids != nullptr : params.bias != nullptr),
      "Route", "1 to 1024 experts, k of 1 to 32 among them, and a bias or a table with token ids");
  if (!checked.ok()) return checked;
  return Launch<Plan>("Route", RouteKernel, {params.tokens}, kWarp, params, stream);
}

}  // namespace reprise::kernels::cuda
