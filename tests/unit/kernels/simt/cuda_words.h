// The words of CUDA C++ that nvcc knows without an include, for the machine of machine.h. Compilers
// are told to include it in front of a kernel's source.
#pragma once

#include <cuda_runtime_api.h>

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <source_location>

#include "tests/unit/kernels/simt/machine.h"

#define __global__
#define __device__
#define __host__
#define __launch_bounds__(...)

// Of the thread that runs.
struct SimtIndex {
  unsigned x = 0, y = 0, z = 0;
};
extern SimtIndex threadIdx, blockIdx;
extern dim3 blockDim, gridDim;

using SimtPlace = std::source_location;

inline void __syncthreads(const SimtPlace& at = SimtPlace::current()) {
  reprise::kernels::simt::WaitForBlock(at);
}
inline void __syncwarp(uint32_t mask = 0xFFFFFFFFu, const SimtPlace& at = SimtPlace::current()) {
  reprise::kernels::simt::WaitForWarp(mask, reprise::kernels::simt::Exchange::kNothing, 0, 0, at);
}
template <typename T>
T __shfl_xor_sync(uint32_t mask, T value, int lanes, const SimtPlace& at = SimtPlace::current()) {
  using reprise::kernels::simt::Exchange;
  return reprise::kernels::simt::ExchangeValue(mask, Exchange::kXor, value, lanes, at);
}
template <typename T>
T __shfl_down_sync(uint32_t mask, T value, int by, const SimtPlace& at = SimtPlace::current()) {
  using reprise::kernels::simt::Exchange;
  return reprise::kernels::simt::ExchangeValue(mask, Exchange::kDown, value, by, at);
}
template <typename T>
T __shfl_up_sync(uint32_t mask, T value, int by, const SimtPlace& at = SimtPlace::current()) {
  using reprise::kernels::simt::Exchange;
  return reprise::kernels::simt::ExchangeValue(mask, Exchange::kUp, value, by, at);
}
template <typename T>
T __shfl_sync(uint32_t mask, T value, int lane, const SimtPlace& at = SimtPlace::current()) {
  using reprise::kernels::simt::Exchange;
  return reprise::kernels::simt::ExchangeValue(mask, Exchange::kLane, value, lane, at);
}
inline uint32_t __ballot_sync(uint32_t mask, bool vote,
                              const SimtPlace& at = SimtPlace::current()) {
  using reprise::kernels::simt::Exchange;
  return static_cast<uint32_t>(
      reprise::kernels::simt::WaitForWarp(mask, Exchange::kBallot, 0, vote ? 1 : 0, at));
}
// Threads run one at a time between two barriers. What it returns depends on their order.
template <typename T>
T atomicAdd(T* at, T value) {
  const T old = *at;
  *at += value;
  return old;
}

inline int __popc(uint32_t bits) { return __builtin_popcount(bits); }
