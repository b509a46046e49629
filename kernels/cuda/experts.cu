// The plan is one block's, a thread an expert: it counts its slots, a scan over the block gives
// each its places and tiles, and it walks the slots again to take them. A slot is read by all
// threads at once, from one address. The sort is stable whatever the order of threads: no atomics.
#include "kernels/cuda/experts.h"

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/router.h"
#include "kernels/formats.h"

namespace reprise::kernels::cuda {
namespace {

constexpr int kPlanThreads = kMaxExperts;
constexpr int kThreads = 256;

struct Plan {
  int32_t scan[2][kPlanThreads];
};

// CUDA kernels

// The sum of the values of this thread and those before it. REQUIRES: all threads call it.
__device__ int32_t InclusiveScan(int32_t value, Plan& plan) {
  const int thread = static_cast<int>(threadIdx.x);
  int from = 0;
  __syncthreads();
  plan.scan[from][thread] = value;
  __syncthreads();
  for (int by = 1; by < kPlanThreads; by *= 2) {
    value = plan.scan[from][thread] + (thread >= by ? plan.scan[from][thread - by] : 0);
    from = 1 - from;
    plan.scan[from][thread] = value;
    __syncthreads();
  }
  return value;
}

__global__ void __launch_bounds__(kPlanThreads) PlanKernel(PlanExpertsParams params) {
  Plan& plan = Shared<Plan>();
  const int expert = static_cast<int>(threadIdx.x);
  const int32_t slots = static_cast<int32_t>(params.tokens * params.k);
  int32_t count = 0;
  for (int32_t slot = 0; slot < slots; ++slot) count += params.chosen[slot] == expert ? 1 : 0;
  int32_t place = InclusiveScan(count, plan) - count;
  const int32_t tiles = TilesOf(count);
  const int32_t tiles_before = InclusiveScan(tiles, plan);
  const int32_t first_tile = tiles_before - tiles;
  for (int32_t i = 0; i < tiles; ++i) {
    const int32_t left = count - i * kExpertTileRows;
    params.tiles[first_tile + i] = {expert, place + i * kExpertTileRows,
                                    left < kExpertTileRows ? left : kExpertTileRows};
  }
  // The last thread's sum is everybody's.
  if (expert == kPlanThreads - 1) {
    for (int64_t i = tiles_before; i < TilesMax(slots, params.experts); ++i) params.tiles[i] = {};
  }
  if (count == 0) return;
  for (int32_t slot = 0; slot < slots; ++slot) {
    if (params.chosen[slot] != expert) continue;
    params.slot_at[place] = slot;
    params.token_at[place] = slot / params.k;
    params.place_of[slot] = place++;
  }
}

__global__ void __launch_bounds__(kThreads) GatherWeightsKernel(GatherWeightsParams params) {
  const int64_t at = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (at < params.slots) params.out[at] = params.weights[params.slot_at[at]];
}

__global__ void __launch_bounds__(kThreads) CombineKernel(CombineParams params) {
  const int64_t at = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (at >= params.tokens * params.n) return;
  const int64_t token = at / params.n, column = at % params.n;
  const int32_t* places = params.place_of + token * params.k;
  float sum = RoundBf16(params.routed[places[0] * params.n + column]);
  for (int i = 1; i < params.k; ++i) sum += RoundBf16(params.routed[places[i] * params.n + column]);
  params.out[at] = RoundBf16(sum + RoundBf16(params.out[at]));
}

}  // namespace

// kernel launchers

absl::Status PlanExperts(const PlanExpertsParams& params, cudaStream_t stream) {
  const absl::Status checked = Require(params.experts >= 1 && params.experts <= kMaxExperts &&
                                           params.k >= 1 && params.tokens <= INT32_MAX / params.k,
                                       "PlanExperts", "1 to 1024 experts and less than 2^31 slots");
  if (!checked.ok()) return checked;
  return Launch<Plan>("PlanExperts", PlanKernel, {params.tokens > 0 ? 1 : 0}, kPlanThreads, params,
                      stream);
}

absl::Status GatherWeights(const GatherWeightsParams& params, cudaStream_t stream) {
  return Launch<NoShared>("GatherWeights", GatherWeightsKernel, {Blocks(params.slots, kThreads)},
                          kThreads, params, stream);
}

absl::Status CombineExperts(const CombineParams& params, cudaStream_t stream) {
  return Launch<NoShared>("CombineExperts", CombineKernel,
                          {Blocks(params.tokens * params.n, kThreads)}, kThreads, params, stream);
}

}  // namespace reprise::kernels::cuda
