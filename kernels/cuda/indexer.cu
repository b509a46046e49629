// Scores: a block of 128 threads has 32 keys of one token in shared memory and walks the heads four
// at a time; a key's terms are added by one thread in the order of the heads. Selection: the k-th
// largest score, found byte by byte from the top by counting, then one ordered pass that takes what
// lies above it, and of its equals the first.
#include "kernels/cuda/indexer.h"

#include "kernels/cuda/entry.cuh"
#include "kernels/cuda/launch.cuh"

namespace reprise::kernels::cuda {
namespace {

constexpr int kKeys = 32;
constexpr int kHeadsAtOnce = kEntryThreads / kWarp;
constexpr int kKeyStride = kIndexDimMax + 4;  // 33 times 16 bytes
constexpr int kSelectThreads = 256;
constexpr int kSelectWarps = kSelectThreads / kWarp;
constexpr int kBins = 256;

struct ScorePlan {
  float keys[kKeys][kKeyStride];
  float q[kHeadsAtOnce][kKeyStride];
  float terms[kHeadsAtOnce][kKeys];
};

struct SelectPlan {
  int bins[kBins];
  int taken[kSelectWarps], equal[kSelectWarps];
  uint32_t prefix;
  int left;
};

// CUDA kernels

__global__ void __launch_bounds__(kEntryThreads) QueriesKernel(IndexQueriesParams params) {
  EntryPlan& plan = Shared<EntryPlan>();
  const int64_t vector = blockIdx.x;
  float* q = params.q + vector * params.dim;
  for (int i = static_cast<int>(threadIdx.x); i < params.dim; i += kEntryThreads) plan.x[i] = q[i];
  __syncthreads();
  RotateVector(plan.x, params.dim, params.rope / 2,
               params.angles + vector / params.heads * params.rope, /*inverse=*/false);
  if (params.quantised) FinishIndexVector(plan.x, params.dim, nullptr);
  for (int i = static_cast<int>(threadIdx.x); i < params.dim; i += kEntryThreads) q[i] = plan.x[i];
  if (threadIdx.x != 0) return;
  const float weight = params.weights[vector] * params.factor;
  params.weights[vector] = params.quantised ? RoundBf16(weight) : weight;
}

__global__ void __launch_bounds__(kEntryThreads) ScoresKernel(IndexScoresParams params) {
  ScorePlan& plan = Shared<ScorePlan>();
  const int thread = static_cast<int>(threadIdx.x), lane = thread % kWarp, warp = thread / kWarp;
  const int64_t row = blockIdx.x, first = static_cast<int64_t>(blockIdx.y) * kKeys;
  const int64_t visible = (params.positions[row] + 1) / params.ratio;
  const int dim = params.dim;
  if (first >= visible) return;
  for (int r = warp; r < kKeys; r += kHeadsAtOnce) {
    const bool exists = first + r < visible;
    const uint8_t* key = exists ? RowOf(params.keys, params.sequences[row], first + r) : nullptr;
    for (int c = lane; c < dim; c += kWarp)
      plan.keys[r][c] = exists ? ReadKey(key, params.keys.format, dim, c) : 0.0f;
  }
  float score = 0.0f;
  for (int64_t head = 0; head < params.heads; head += kHeadsAtOnce) {
    const int64_t mine = row * params.heads + head + warp;
    const bool exists = head + warp < params.heads;
    for (int c = lane; c < dim; c += kWarp)
      plan.q[warp][c] = exists ? params.q[mine * dim + c] : 0.0f;
    __syncthreads();
    float sums[kSumLanes] = {};
    for (int c = 0; c < dim; c += kSumLanes) {
#pragma unroll
      for (int k = 0; k < kSumLanes; ++k)
        sums[k] = fmaf(plan.keys[lane][c + k], plan.q[warp][c + k], sums[k]);
    }
    const float dot =
        ((sums[0] + sums[4]) + (sums[2] + sums[6])) + ((sums[1] + sums[5]) + (sums[3] + sums[7]));
    if (exists) {
      const float match = fmaxf(0.0f, params.to_bf16 ? RoundBf16(dot) : dot);
      const float term = params.weights[mine] * match;
      plan.terms[warp][lane] = params.to_bf16 ? RoundBf16(term) : term;
    }
    __syncthreads();
    if (warp == 0) {
      for (int i = 0; i < kHeadsAtOnce && head + i < params.heads; ++i)
        score += plan.terms[i][lane];
    }
  }
  if (warp == 0 && first + lane < visible)
    params.scores[row * params.blocks_max + first + lane] =
        params.to_bf16 ? RoundBf16(score) : score;
}

// Larger for a larger score; NaN as minus infinity, both zeros alike.
__device__ uint32_t OrderOf(float score) {
  if (score != score) score = -INFINITY;  // NaN
  if (score == 0.0f) score = 0.0f;
  const uint32_t bits = std::bit_cast<uint32_t>(score);
  return bits >> 31 != 0 ? ~bits : bits | 0x80000000u;
}

// The order of the k-th best score into plan.prefix, and how many of its equals belong to the k
// best into plan.left.
__device__ void FindThreshold(const float* scores, int64_t visible, int k, SelectPlan& plan) {
  const int thread = static_cast<int>(threadIdx.x);
  uint32_t mask = 0;
  if (thread == 0) {
    plan.prefix = 0;
    plan.left = k;
  }
  for (int shift = 24; shift >= 0; shift -= 8) {
    plan.bins[thread] = 0;
    __syncthreads();
    const uint32_t prefix = plan.prefix;
    for (int64_t i = thread; i < visible; i += kSelectThreads) {
      const uint32_t order = OrderOf(scores[i]);
      if ((order & mask) == prefix) atomicAdd(&plan.bins[order >> shift & 0xFF], 1);
    }
    __syncthreads();
    if (thread == 0) {
      int bin = kBins - 1, left = plan.left;
      while (plan.bins[bin] < left) left -= plan.bins[bin--];
      plan.prefix = prefix | static_cast<uint32_t>(bin) << shift;
      plan.left = left;
    }
    mask |= 0xFFu << shift;
    __syncthreads();
  }
}

// The sum of `counts` before this warp, and of all.
__device__ int2 SumsBefore(const int* counts) {
  int2 sums = {0, 0};
  for (int i = 0; i < kSelectWarps; ++i) {
    if (i < static_cast<int>(threadIdx.x) / kWarp) sums.x += counts[i];
    sums.y += counts[i];
  }
  return sums;
}

__global__ void __launch_bounds__(kSelectThreads) SelectKernel(SelectParams params) {
  SelectPlan& plan = Shared<SelectPlan>();
  const int thread = static_cast<int>(threadIdx.x), lane = thread % kWarp, warp = thread / kWarp;
  const int64_t row = blockIdx.x, visible = (params.positions[row] + 1) / params.ratio;
  const float* scores = params.scores + row * params.blocks_max;
  int32_t* selected = params.selected + row * params.top_k;
  if (visible <= params.top_k) {
    for (int i = thread; i < params.top_k; i += kSelectThreads) selected[i] = i < visible ? i : -1;
    return;
  }
  FindThreshold(scores, visible, params.top_k, plan);
  const uint32_t threshold = plan.prefix, below = (1u << lane) - 1;
  const int equals_wanted = plan.left;
  int taken = 0, equals = 0;  // in the chunks before
  for (int64_t first = 0; first < visible; first += kSelectThreads) {
    const bool exists = first + thread < visible;
    const uint32_t order = exists ? OrderOf(scores[first + thread]) : 0;
    const bool equal = exists && order == threshold;
    const uint32_t equal_bits = __ballot_sync(0xffffffffu, equal);
    if (lane == 0) plan.equal[warp] = __popc(equal_bits);
    __syncthreads();
    const int2 equal_sums = SumsBefore(plan.equal);
    const int rank = equals + equal_sums.x + __popc(equal_bits & below);
    const bool take = exists && (order > threshold || (equal && rank < equals_wanted));
    const uint32_t take_bits = __ballot_sync(0xffffffffu, take);
    if (lane == 0) plan.taken[warp] = __popc(take_bits);
    __syncthreads();
    const int2 taken_sums = SumsBefore(plan.taken);
    if (take)
      selected[taken + taken_sums.x + __popc(take_bits & below)] =
          static_cast<int32_t>(first + thread);
    taken += taken_sums.y;
    equals += equal_sums.y;
    __syncthreads();
  }
}

}  // namespace

// kernel launchers

absl::Status IndexQueries(const IndexQueriesParams& params, cudaStream_t stream) {
  const bool power = params.dim >= kKeyGroup && (params.dim & (params.dim - 1)) == 0;
  const absl::Status checked =
      Require(params.dim >= 1 && params.dim <= kIndexDimMax && params.rope % 2 == 0 &&
                  params.rope <= params.dim && (!params.quantised || power),
              "IndexQueries", "up to 128 channels, quantised ones a power of two from 32 on");
  if (!checked.ok()) return checked;
  return Launch<EntryPlan>("IndexQueries", QueriesKernel, {params.rows * params.heads},
                           kEntryThreads, params, stream);
}

absl::Status IndexScores(const IndexScoresParams& params, cudaStream_t stream) {
  const absl::Status checked = Require(params.dim >= 1 && params.dim <= kIndexDimMax &&
                                           params.dim % kSumLanes == 0 && params.ratio >= 1,
                                       "IndexScores", "channels in multiples of 8 up to 128");
  if (!checked.ok()) return checked;
  return Launch<ScorePlan>("IndexScores", ScoresKernel,
                           {params.rows, Blocks(params.blocks_max, kKeys)}, kEntryThreads, params,
                           stream);
}

absl::Status SelectBlocks(const SelectParams& params, cudaStream_t stream) {
  const absl::Status checked =
      Require(params.top_k >= 1 && params.ratio >= 1, "SelectBlocks", "a top_k of at least 1");
  if (!checked.ok()) return checked;
  return Launch<SelectPlan>("SelectBlocks", SelectKernel, {params.rows}, kSelectThreads, params,
                            stream);
}

}  // namespace reprise::kernels::cuda
