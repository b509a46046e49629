// What one block does with one vector in shared memory: norm, rotation, Hadamard transform, and the
// stored forms of key-value entries and indexer keys, with the bits of kernels/cpu. All threads of
// the block call each function; unless said otherwise the vector is ready for all when it returns.
#pragma once

#include "kernels/cuda/paged.h"
#include "kernels/cuda/quantise.cuh"
#include "kernels/formats.h"

namespace reprise::kernels::cuda {

inline constexpr int kEntryThreads = 128;
inline constexpr int kEntryChannelsMax = 512;
inline constexpr int kKvGroup = 64;   // channels of an entry that share a scale
inline constexpr int kKeyGroup = 32;  // of an indexer key
inline constexpr int kSumLanes = 8;   // element k is added to lane k mod 8

struct EntryPlan {
  float x[kEntryChannelsMax];
  float lane[kSumLanes];
};

__device__ inline void RoundVector(float* x, int n) {
  for (int i = static_cast<int>(threadIdx.x); i < n; i += kEntryThreads) x[i] = RoundBf16(x[i]);
  __syncthreads();
}

// x = weight * x / sqrt(mean(x^2) + eps); no weight: nullptr.
__device__ inline void NormaliseVector(EntryPlan& plan, const float* weight, int n, float eps) {
  const int thread = static_cast<int>(threadIdx.x);
  if (thread < kSumLanes) {
    float sum = 0.0f;
    for (int k = thread; k < n; k += kSumLanes) sum = fmaf(plan.x[k], plan.x[k], sum);
    plan.lane[thread] = sum;
  }
  __syncthreads();
  const float* lane = plan.lane;
  const float sum =
      ((lane[0] + lane[4]) + (lane[2] + lane[6])) + ((lane[1] + lane[5]) + (lane[3] + lane[7]));
  const float scale = 1.0f / sqrtf(sum / static_cast<float>(n) + eps);
  for (int i = thread; i < n; i += kEntryThreads) {
    const float value = plan.x[i] * scale;
    plan.x[i] = weight == nullptr ? value : weight[i] * value;
  }
  __syncthreads();
}

// Rotates the last 2 * pairs elements; `angles` is cos [pairs], then sin [pairs].
__device__ inline void RotateVector(float* x, int n, int pairs, const float* angles, bool inverse) {
  float* tail = x + n - 2 * pairs;
  for (int i = static_cast<int>(threadIdx.x); i < pairs; i += kEntryThreads) {
    const float a = tail[2 * i], b = tail[2 * i + 1], cosine = angles[i];
    const float sine = inverse ? -angles[pairs + i] : angles[pairs + i];
    tail[2 * i] = a * cosine - b * sine;
    tail[2 * i + 1] = a * sine + b * cosine;
  }
  __syncthreads();
}

// Walsh-Hadamard transform in natural order times n^-0.5. REQUIRES: n is a power of two.
__device__ inline void HadamardVector(float* x, int n) {
  const float scale = static_cast<float>(1.0 / sqrt(static_cast<double>(n)));
  for (int half = 1; half < n; half *= 2) {
    for (int i = static_cast<int>(threadIdx.x); i < n / 2; i += kEntryThreads) {
      const int at = i / half * 2 * half + i % half;
      const float a = x[at], b = x[at + half];
      x[at] = a + b;
      x[at + half] = a - b;
    }
    __syncthreads();
  }
  for (int i = static_cast<int>(threadIdx.x); i < n; i += kEntryThreads) x[i] *= scale;
  __syncthreads();
}

// Writes n plain values as they are.
__device__ inline void WritePlain(const float* x, int n, RowFormat format, uint8_t* out) {
  for (int i = static_cast<int>(threadIdx.x); i < n; i += kEntryThreads) {
    if (format == RowFormat::kF32) {
      reinterpret_cast<float*>(out)[i] = x[i];
    } else {
      reinterpret_cast<uint16_t*>(out)[i] = Bf16Bits(RoundBf16(x[i]));
    }
  }
}

// Rounds the channels before the last `rope` of an entry x[dim], rounded to bfloat16 already, to
// FP8 in place, and writes the entry in its format. The bytes are not awaited.
__device__ inline void WriteEntry(float* x, int dim, int rope, RowFormat format, uint8_t* out) {
  constexpr int kPerLane = kKvGroup / kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int plain = dim - rope, groups = (plain + kKvGroup - 1) / kKvGroup;
  uint8_t* scales = out + plain + 2 * rope;
  for (int group = warp; group < groups; group += kEntryThreads / kWarp) {
    const int begin = group * kKvGroup + lane;
    float values[kPerLane];
    uint8_t codes[kPerLane];
#pragma unroll
    for (int i = 0; i < kPerLane; ++i)
      values[i] = begin + i * kWarp < plain ? x[begin + i * kWarp] : 0.0f;
    const uint8_t scale = EncodeFp8Group(values, codes);
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) {
      if (begin + i * kWarp >= plain) continue;
      x[begin + i * kWarp] = WidenE4m3(codes[i]) * WidenE8m0(scale);
      if (format == RowFormat::kPacked) out[begin + i * kWarp] = codes[i];
    }
    if (format == RowFormat::kPacked && lane == 0) scales[group] = scale;
  }
  __syncthreads();
  if (format != RowFormat::kPacked) {
    WritePlain(x, dim, format, out);
    return;
  }
  uint16_t* halves = reinterpret_cast<uint16_t*>(out + plain);
  for (int i = static_cast<int>(threadIdx.x); i < rope; i += kEntryThreads)
    halves[i] = Bf16Bits(x[plain + i]);
}

// Rounds x[n] to FP4 in place; with `out` writes the packed key. REQUIRES: n is a multiple of 32.
__device__ inline void RoundToFp4(float* x, int n, uint8_t* out) {
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  for (int group = warp; group < n / kKeyGroup; group += kEntryThreads / kWarp) {
    const int at = group * kKeyGroup + lane;
    const float amax = WarpMax(fmaxf(fabsf(x[at]), kFp4FloorAmax));
    const int exponent = Fp4Exponent(amax);
    const float scaled = fminf(fmaxf(x[at] * PowerOfTwo(-exponent), -kFp4Max), kFp4Max);
    const float value = NearestE2m1(scaled);
    const int code = E2m1Code(value);
    const int next = __shfl_down_sync(0xffffffffu, code, 1);
    x[at] = value * PowerOfTwo(exponent);
    if (out == nullptr) continue;
    if (lane % 2 == 0) out[at / 2] = static_cast<uint8_t>(code | next << 4);
    if (lane == 0) out[n / 2 + group] = ScaleByte(exponent);
  }
  __syncthreads();
}

// A rotated indexer vector x[n] as it is compared: bfloat16, Hadamard, bfloat16, FP4.
__device__ inline void FinishIndexVector(float* x, int n, uint8_t* packed) {
  RoundVector(x, n);
  HadamardVector(x, n);
  RoundVector(x, n);
  RoundToFp4(x, n, packed);
}

// Channel c of a stored entry of `dim` channels, of which the last `rope` are rotary.
__device__ inline float ReadEntry(const uint8_t* row, RowFormat format, int dim, int rope, int c) {
  if (format == RowFormat::kF32) return reinterpret_cast<const float*>(row)[c];
  if (format == RowFormat::kBf16) return WidenBf16(reinterpret_cast<const uint16_t*>(row)[c]);
  const int plain = dim - rope;
  if (c >= plain) return WidenBf16(reinterpret_cast<const uint16_t*>(row + plain)[c - plain]);
  return WidenE4m3(row[c]) * WidenE8m0(row[plain + 2 * rope + c / kKvGroup]);
}

// Channel c of a stored indexer key of n channels.
__device__ inline float ReadKey(const uint8_t* row, RowFormat format, int n, int c) {
  if (format == RowFormat::kF32) return reinterpret_cast<const float*>(row)[c];
  if (format == RowFormat::kBf16) return WidenBf16(reinterpret_cast<const uint16_t*>(row)[c]);
  const uint8_t code = static_cast<uint8_t>(row[c / 2] >> (c % 2 * 4) & 15);
  return WidenE2m1(code) * WidenE8m0(row[n / 2 + c / kKeyGroup]);
}

}  // namespace reprise::kernels::cuda
