// Attention of 8 heads of one token by one block, in two walks over the token's rows, 32 at a time
// in shared memory: the first finds each head's largest logit, the second computes the logits again
// and sums. No sum is ever scaled anew, so that rows are summed in one chain in their order, as the
// CPU does, and no split of the rows exists that could depend on a batch.
#pragma once

#include "kernels/cuda/attention.h"
#include "kernels/cuda/entry.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/exp.h"

namespace reprise::kernels::cuda {

inline constexpr int kAttendThreads = 128;
inline constexpr int kAttendHeads = 8;                                      // of a block
inline constexpr int kAttendRows = 32;                                      // in shared memory
inline constexpr int kAttendChannels = kEntryChannelsMax / kAttendThreads;  // of a thread
// 129 times 16 bytes: reads of 16 bytes of rows one below the other meet different banks.
inline constexpr int kAttendStride = kEntryChannelsMax + 4;
inline constexpr int kLogitsAThread = kAttendRows * kAttendHeads / kAttendThreads;
static_assert(kAttendRows == kWarp && kAttendThreads / kWarp * kLogitsAThread == kAttendHeads,
              "a warp has one head's logits of all rows");
static_assert(kAttendRows % kSumLanes == 0, "row j is added to lane j mod 8 in every walk");

struct AttendPlan {
  float rows[kAttendRows][kAttendStride];
  float q[kAttendHeads][kAttendStride];
  float p[kAttendHeads][kAttendRows];  // logits, then weights; 0 for rows that are none
  float max[kAttendHeads];
  float lane[kAttendHeads][kSumLanes];
  float sum[kAttendHeads];
  int valid[kAttendThreads];  // selected blocks that each thread found
};

// The rows of one token, in their order: its window, then compressed entries.
struct AttendRowsOf {
  const AttendParams& params;
  const AttendToken token;
  const int32_t* selected;  // nullptr: every block
  int64_t in_window, count;

  __device__ float Read(int64_t j, int c) const {
    if (j >= in_window) {
      const int64_t at = j - in_window, block = selected == nullptr ? at : selected[at];
      return ReadEntry(RowOf(params.entries, token.sequence, block), params.entries.format,
                       params.dim, params.rope, c);
    }
    const int64_t position = token.position - in_window + 1 + j;
    if (position >= token.start)
      return params.keys[(token.first_row + position - token.start) * params.dim + c];
    return ReadEntry(RingRowOf(params.window, token.sequence, position), params.window.format,
                     params.dim, params.rope, c);
  }
};

// How many rows there are. All threads call it.
__device__ inline AttendRowsOf FindRows(const AttendParams& params, int64_t index,
                                        AttendPlan& plan) {
  const AttendToken token = params.tokens[index];
  const int64_t in_window =
      token.position + 1 < params.window_tokens ? token.position + 1 : params.window_tokens;
  int64_t blocks = params.ratio == 0 ? 0 : (token.position + 1) / params.ratio;
  const int32_t* selected = nullptr;
  if (params.selected != nullptr) {
    selected = params.selected + index * params.top_k;
    int valid = 0;
    for (int64_t i = threadIdx.x; i < params.top_k; i += kAttendThreads)
      valid += selected[i] >= 0 ? 1 : 0;
    plan.valid[threadIdx.x] = valid;
    __syncthreads();
    blocks = 0;
    for (int i = 0; i < kAttendThreads; ++i) blocks += plan.valid[i];
  }
  return {params, token, selected, in_window, in_window + blocks};
}

// Rows [first, first + 32) and their scaled logits for the block's heads. Ready when it returns.
__device__ inline void LoadLogits(const AttendRowsOf& rows, int64_t first, AttendPlan& plan) {
  const int thread = static_cast<int>(threadIdx.x), lane = thread % kWarp, warp = thread / kWarp;
  const int dim = rows.params.dim;
  __syncthreads();
  for (int r = warp; r < kAttendRows; r += kAttendThreads / kWarp) {
    const bool exists = first + r < rows.count;
    for (int c = lane; c < dim; c += kWarp)
      plan.rows[r][c] = exists ? rows.Read(first + r, c) : 0.0f;
  }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < kLogitsAThread; ++i) {
    const int head = warp + i * (kAttendThreads / kWarp);
    float sums[kSumLanes] = {};
    for (int c = 0; c < dim; c += kSumLanes) {
#pragma unroll
      for (int k = 0; k < kSumLanes; ++k)
        sums[k] = fmaf(plan.rows[lane][c + k], plan.q[head][c + k], sums[k]);
    }
    const float dot =
        ((sums[0] + sums[4]) + (sums[2] + sums[6])) + ((sums[1] + sums[5]) + (sums[3] + sums[7]));
    plan.p[head][lane] = dot * rows.params.scale;
  }
  __syncthreads();
}

// Each head's largest logit into plan.max.
__device__ inline void FindLargest(const AttendRowsOf& rows, int64_t first_head, AttendPlan& plan) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp,
            warp = static_cast<int>(threadIdx.x) / kWarp;
  float max[kLogitsAThread];
#pragma unroll
  for (int i = 0; i < kLogitsAThread; ++i) max[i] = -INFINITY;
  for (int64_t first = 0; first < rows.count; first += kAttendRows) {
    LoadLogits(rows, first, plan);
#pragma unroll
    for (int i = 0; i < kLogitsAThread; ++i) {
      if (first + lane < rows.count)
        max[i] = fmaxf(max[i], plan.p[warp + i * (kAttendThreads / kWarp)][lane]);
    }
  }
#pragma unroll
  for (int i = 0; i < kLogitsAThread; ++i) {
    const int head = warp + i * (kAttendThreads / kWarp);
    const float largest = WarpMax(max[i]);
    if (lane != 0) continue;
    // The rounded form is relative to a row's logit, the other to the sink too.
    const float sink =
        first_head + head < rows.params.heads ? rows.params.sinks[first_head + head] : 0.0f;
    plan.max[head] = rows.params.to_bf16 ? largest : fmaxf(largest, sink);
  }
  __syncthreads();
}

// Sums of weights into plan.sum, the weighted rows of this thread's channels into `pooled`.
__device__ inline void SumRows(const AttendRowsOf& rows, int64_t first_head, AttendPlan& plan,
                               float (&pooled)[kAttendHeads][kAttendChannels]) {
  const int thread = static_cast<int>(threadIdx.x);
  const int head = thread / kSumLanes, lane = thread % kSumLanes;
  const bool sums = thread < kAttendHeads * kSumLanes;
  float sum = 0.0f;
  for (int64_t first = 0; first < rows.count; first += kAttendRows) {
    LoadLogits(rows, first, plan);
    if (sums) {
      for (int r = lane; r < kAttendRows; r += kSumLanes) {
        const bool exists = first + r < rows.count;
        const float weight = exists ? Exp(plan.p[head][r] - plan.max[head]) : 0.0f;
        if (exists) sum += weight;
        plan.p[head][r] = rows.params.to_bf16 ? RoundBf16(weight) : weight;
      }
    }
    __syncthreads();
    const int here =
        rows.count - first < kAttendRows ? static_cast<int>(rows.count - first) : kAttendRows;
    for (int r = 0; r < here; ++r) {
#pragma unroll
      for (int i = 0; i < kAttendChannels; ++i) {
        const int c = thread + i * kAttendThreads;
        if (c >= rows.params.dim) continue;
        const float value = plan.rows[r][c];
#pragma unroll
        for (int h = 0; h < kAttendHeads; ++h)
          pooled[h][i] = fmaf(plan.p[h][r], value, pooled[h][i]);
      }
    }
  }
  if (sums) plan.lane[head][lane] = sum;
  __syncthreads();
  if (thread < kAttendHeads && first_head + thread < rows.params.heads) {
    const float* part = plan.lane[thread];
    plan.sum[thread] = ((part[0] + part[4]) + (part[2] + part[6])) +
                       ((part[1] + part[5]) + (part[3] + part[7])) +
                       Exp(rows.params.sinks[first_head + thread] - plan.max[thread]);
  }
  __syncthreads();
}

__global__ void __launch_bounds__(kAttendThreads) AttendKernel(AttendParams params) {
  AttendPlan& plan = Shared<AttendPlan>();
  const int thread = static_cast<int>(threadIdx.x), dim = params.dim;
  const int64_t index = blockIdx.x, first_head = static_cast<int64_t>(blockIdx.y) * kAttendHeads;
  const int heads = params.heads - first_head < kAttendHeads
                        ? static_cast<int>(params.heads - first_head)
                        : kAttendHeads;
  const float* q = params.q + (index * params.heads + first_head) * dim;
  for (int i = thread; i < kAttendHeads * dim; i += kAttendThreads)
    plan.q[i / dim][i % dim] = i / dim < heads ? q[i] : 0.0f;
  const AttendRowsOf rows = FindRows(params, index, plan);
  FindLargest(rows, first_head, plan);
  float pooled[kAttendHeads][kAttendChannels] = {};
  SumRows(rows, first_head, plan, pooled);

  // Queries make room for outputs: a rotated pair belongs to two threads.
  for (int h = 0; h < heads; ++h) {
#pragma unroll
    for (int i = 0; i < kAttendChannels; ++i) {
      const int c = thread + i * kAttendThreads;
      if (c >= dim) continue;
      const float value = pooled[h][i] / plan.sum[h];
      plan.q[h][c] = params.to_bf16 ? RoundBf16(value) : value;
    }
  }
  __syncthreads();
  const float* angles = params.angles + index * params.rope;
  float* out = params.out + (index * params.heads + first_head) * dim;
  for (int h = 0; h < heads; ++h) {
    RotateVector(plan.q[h], dim, params.rope / 2, angles, /*inverse=*/true);
    for (int c = thread; c < dim; c += kAttendThreads)
      out[h * dim + c] = params.to_bf16 ? RoundBf16(plan.q[h][c]) : plan.q[h][c];
  }
}

}  // namespace reprise::kernels::cuda
