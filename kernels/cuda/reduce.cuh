// Reductions of one thread block in an order that depends on the block's size alone: a row gives
// the same bits alone and in any batch.
#pragma once

#include <cstdint>

namespace reprise::kernels::cuda {

inline constexpr int kWarp = 32;
inline constexpr int kRowThreads = 256;  // of the kernels that give a block to a row
static_assert(kRowThreads % kWarp == 0 && kRowThreads / kWarp <= kWarp,
              "the last step is one warp's");

__device__ inline float WarpSum(float value) {
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    value += __shfl_xor_sync(0xffffffffu, value, offset);
  }
  return value;
}

__device__ inline float WarpMax(float value) {
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    value = fmaxf(value, __shfl_xor_sync(0xffffffffu, value, offset));
  }
  return value;
}

// The sum over the block, in every thread. REQUIRES: kRowThreads threads, all of which call it;
// `scratch` is shared, [kRowThreads / kWarp], and no longer read by an earlier use.
__device__ inline float BlockSum(float value, float* scratch) {
  value = WarpSum(value);
  if (threadIdx.x % kWarp == 0) scratch[threadIdx.x / kWarp] = value;
  __syncthreads();
  value = threadIdx.x % kWarp < kRowThreads / kWarp ? scratch[threadIdx.x % kWarp] : 0.0f;
  return WarpSum(value);
}

// A score and where it stands. Of two equal scores the lower index is the better.
struct Scored {
  float score;
  int32_t index;
};

__device__ inline Scored Better(Scored a, Scored b) {
  return a.score > b.score || (a.score == b.score && a.index < b.index) ? a : b;
}

__device__ inline Scored WarpBest(Scored value) {
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    const Scored other{__shfl_xor_sync(0xffffffffu, value.score, offset),
                       __shfl_xor_sync(0xffffffffu, value.index, offset)};
    value = Better(value, other);
  }
  return value;
}

}  // namespace reprise::kernels::cuda
