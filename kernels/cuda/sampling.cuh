// One block samples one row. A thread has a run of neighbouring tokens, so that sums in the order
// of ids are sums over a thread's tokens, then over threads; all are double and in one fixed order.
// Cuts are kept as the order of the last token that is in and how many of its equals are, found bit
// by bit from the top: no sort.
#pragma once

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/reduce.cuh"
#include "kernels/cuda/sampling.h"
#include "kernels/formats.h"
#include "kernels/philox.h"

namespace reprise::kernels::cuda {

inline constexpr int kSampleThreads = 512;
inline constexpr int kSumRun = 16;

struct SamplePlan {
  double sums[kSampleThreads];
  int32_t counts[kSampleThreads];
  double total, target;
  int32_t owner;  // thread whose tokens hold the draw
  Scored best;
};

// Larger for a larger logit; both zeros alike.
__device__ inline uint32_t LogitOrder(float logit) {
  if (logit == 0.0f) logit = 0.0f;
  const uint32_t bits = std::bit_cast<uint32_t>(logit);
  return bits >> 31 != 0 ? ~bits : bits | 0x80000000u;
}

// The sum over the block, in every thread: kSumRun neighbours first, then those sums. All threads
// call it; `scratch` is [kSampleThreads].
template <typename T>
__device__ T SumOverBlock(T value, T* scratch) {
  const int thread = static_cast<int>(threadIdx.x);
  __syncthreads();
  scratch[thread] = value;
  __syncthreads();
  T sum = 0;
  if (thread < kSampleThreads / kSumRun) {
    for (int i = 0; i < kSumRun; ++i) sum += scratch[thread * kSumRun + i];
  }
  __syncthreads();
  if (thread < kSampleThreads / kSumRun) scratch[thread] = sum;
  __syncthreads();
  sum = 0;
  for (int i = 0; i < kSampleThreads / kSumRun; ++i) sum += scratch[i];
  return sum;
}

// A row, and this thread's part of it.
struct SampleLogits {
  const float* logits;
  int64_t begin, end;  // this thread's tokens
  double max, scale;
  double least;  // of (logit - max) * scale, by min_p

  __device__ double Scaled(int64_t i) const { return (logits[i] - max) * scale; }
  __device__ bool Probable(int64_t i) const { return Scaled(i) >= least; }
};

// What is in: orders above `order`, and of its equals the first `equals` by id.
struct Cut {
  uint32_t order = 0;
  int64_t equals = INT64_MAX;
};

// The mass of what is probable and in order `lowest` or above; kCount: their number.
template <bool kCount>
__device__ double MassFrom(const SampleLogits& row, uint32_t lowest, SamplePlan& plan) {
  double sum = 0.0;
  for (int64_t i = row.begin; i < row.end; ++i) {
    if (LogitOrder(row.logits[i]) < lowest || !row.Probable(i)) continue;
    sum += kCount ? 1.0 : exp(row.Scaled(i));
  }
  return SumOverBlock(sum, plan.sums);
}

// The largest order from which on the mass, or the number, reaches `target`. 0 if none does.
template <bool kCount>
__device__ uint32_t LastOrder(const SampleLogits& row, double target, SamplePlan& plan) {
  uint32_t order = 0;
  for (int bit = 31; bit >= 0; --bit) {
    const uint32_t candidate = order | 1u << bit;
    if (MassFrom<kCount>(row, candidate, plan) >= target) order = candidate;
  }
  return order;
}

__device__ inline Cut CutTopK(const SampleLogits& row, int32_t top_k, SamplePlan& plan) {
  Cut cut;
  if (top_k == 0) return cut;
  cut.order = LastOrder<true>(row, top_k, plan);
  if (cut.order == 0) return cut;  // there are not so many
  cut.equals = top_k - static_cast<int64_t>(MassFrom<true>(row, cut.order + 1, plan));
  return cut;
}

// The logit of an order.
__device__ inline float LogitOf(uint32_t order) {
  return std::bit_cast<float>(order >> 31 != 0 ? order & 0x7FFFFFFFu : ~order);
}

// The shortest part of `cut`, by falling probability, that has top_p of its mass.
__device__ inline Cut CutTopP(const SampleLogits& row, float top_p, Cut cut, SamplePlan& plan) {
  if (top_p >= 1.0f) return cut;
  const auto weight = [&row](uint32_t order) {
    return exp((LogitOf(order) - row.max) * row.scale);
  };
  double all = MassFrom<false>(row, cut.order, plan);
  if (cut.order != 0) {
    all = MassFrom<false>(row, cut.order + 1, plan) +
          static_cast<double>(cut.equals) * weight(cut.order);
  }
  const double target = static_cast<double>(top_p) * all;
  const uint32_t order = LastOrder<false>(row, target, plan);
  const bool inside = order > cut.order || cut.order == 0;
  Cut shorter{inside ? order : cut.order, 0};
  const double left = target - MassFrom<false>(row, shorter.order + 1, plan);
  const double equals = ceil(left / weight(shorter.order));
  shorter.equals = equals < 1.0 ? 1 : static_cast<int64_t>(equals);
  if (!inside && shorter.equals > cut.equals) shorter.equals = cut.equals;
  return shorter;
}

// fn(i) of this thread's tokens that are in, ascending. `before`: equals of cut.order that threads
// before it have.
template <typename Fn>
__device__ void ForKept(const SampleLogits& row, const Cut& cut, int64_t before, const Fn& fn) {
  for (int64_t i = row.begin; i < row.end; ++i) {
    const uint32_t order = LogitOrder(row.logits[i]);
    if (order < cut.order || !row.Probable(i)) continue;
    if (order == cut.order && before++ >= cut.equals) continue;
    fn(i);
  }
}

// Draws the row's token from what is in.
__device__ inline void DrawToken(const SampleLogits& row, const Cut& cut, const SampleRow& how,
                                 double raw_log_sum, SampledRow* sampled, SamplePlan& plan) {
  const int thread = static_cast<int>(threadIdx.x);
  int32_t equals = 0, kept = 0;
  for (int64_t i = row.begin; i < row.end; ++i)
    equals += LogitOrder(row.logits[i]) == cut.order && row.Probable(i) ? 1 : 0;
  __syncthreads();
  plan.counts[thread] = equals;
  __syncthreads();
  int64_t before = 0;
  for (int i = 0; i < thread; ++i) before += plan.counts[i];
  double mass = 0.0;
  ForKept(row, cut, before, [&](int64_t i) {
    mass += exp(row.Scaled(i));
    ++kept;
  });
  const int32_t all_kept = SumOverBlock(kept, plan.counts);
  __syncthreads();
  plan.sums[thread] = mass;
  __syncthreads();
  if (thread == 0) {
    double total = 0.0;
    for (int i = 0; i < kSampleThreads; ++i) total += plan.sums[i];
    plan.total = total;
    plan.target = UniformAt(how.seed, how.position) * total;
    plan.owner = -1;
    double reached = 0.0;
    for (int i = 0; i < kSampleThreads; ++i) {
      if (plan.sums[i] == 0.0) continue;
      plan.owner = i;
      if (reached + plan.sums[i] > plan.target) break;
      reached += plan.sums[i];
    }
  }
  __syncthreads();
  if (thread != plan.owner) return;
  double reached = 0.0;
  for (int i = 0; i < thread; ++i) reached += plan.sums[i];
  int64_t chosen = -1;
  bool found = false;
  ForKept(row, cut, before, [&](int64_t i) {
    if (found) return;
    reached += exp(row.Scaled(i));
    chosen = i;
    found = reached > plan.target;
  });
  sampled->id = static_cast<int32_t>(chosen);
  sampled->kept = all_kept;
  sampled->logprob = static_cast<float>(row.Scaled(chosen) - log(plan.total));
  sampled->raw_logprob = static_cast<float>(row.logits[chosen] - row.max - raw_log_sum);
}

// The largest logit, of equals the first; whether all are finite. All threads call it.
__device__ inline bool FindBest(const SampleLogits& row, SamplePlan& plan) {
  const int thread = static_cast<int>(threadIdx.x);
  Scored best{-INFINITY, INT32_MAX};
  int32_t damaged = 0;
  for (int64_t i = row.begin; i < row.end; ++i) {
    const float logit = row.logits[i];
    damaged += logit - logit == 0.0f ? 0 : 1;  // infinity and NaN give NaN
    best = Better(best, Scored{logit, static_cast<int32_t>(i)});
  }
  damaged = SumOverBlock(damaged, plan.counts);
  best = WarpBest(best);
  __syncthreads();
  if (thread % kWarp == 0) {
    plan.sums[thread / kWarp] = best.score;
    plan.counts[thread / kWarp] = best.index;
  }
  __syncthreads();
  if (thread == 0) {
    plan.best = {-INFINITY, INT32_MAX};
    for (int i = 0; i < kSampleThreads / kWarp; ++i)
      plan.best = Better(plan.best, Scored{static_cast<float>(plan.sums[i]), plan.counts[i]});
  }
  __syncthreads();
  return damaged == 0;
}

__global__ void __launch_bounds__(kSampleThreads) SampleKernel(SampleParams params) {
  SamplePlan& plan = Shared<SamplePlan>();
  const int64_t index = blockIdx.x, vocab = params.vocab;
  const int64_t run = (vocab + kSampleThreads - 1) / kSampleThreads;
  const SampleRow how = params.how[index];
  SampledRow* sampled = params.sampled + index;
  const int64_t begin = static_cast<int64_t>(threadIdx.x) * run;
  SampleLogits row{params.logits + index * vocab,
                   begin < vocab ? begin : vocab,
                   begin + run < vocab ? begin + run : vocab,
                   0.0,
                   1.0,
                   -INFINITY};
  if (!FindBest(row, plan)) {
    if (threadIdx.x == 0) *sampled = {};
    return;
  }
  row.max = plan.best.score;
  const double raw_log_sum = log(MassFrom<false>(row, 0, plan));
  if (how.temperature == 0.0f) {
    if (threadIdx.x == 0) *sampled = {plan.best.index, 1, 0.0f, static_cast<float>(-raw_log_sum)};
    return;
  }
  row.scale = 1.0 / static_cast<double>(how.temperature);
  if (how.min_p > 0.0f) row.least = log(static_cast<double>(how.min_p));
  const Cut cut = CutTopP(row, how.top_p, CutTopK(row, how.top_k, plan), plan);
  DrawToken(row, cut, how, raw_log_sum, sampled, plan);
}

}  // namespace reprise::kernels::cuda
