// One warp's rounding of a group to FP8.
#pragma once

#include "kernels/cuda/reduce.cuh"
#include "kernels/formats.h"

namespace reprise::kernels::cuda {

// Rounds value[i], the elements lane + i * kWarp of a group, to e4m3 multiples of the group's
// scale, whose byte is returned. Elements that the group does not have are 0. REQUIRES: all lanes
// call it.
template <int kCount>
__device__ uint8_t EncodeFp8Group(const float (&value)[kCount], uint8_t (&codes)[kCount]) {
  float amax = kFp8FloorAmax;
#pragma unroll
  for (int i = 0; i < kCount; ++i) amax = fmaxf(amax, fabsf(value[i]));
  const int exponent = Fp8Exponent(WarpMax(amax));
  const float inverse = PowerOfTwo(-exponent);
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    const float scaled = fminf(fmaxf(value[i] * inverse, -kFp8Max), kFp8Max);
    codes[i] = E4m3Code(NearestE4m3(scaled));
  }
  return ScaleByte(exponent);
}

}  // namespace reprise::kernels::cuda
