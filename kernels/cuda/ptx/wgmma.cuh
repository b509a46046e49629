// wgmma of compute capability 9.0a: a warpgroup (128 threads) multiplies two FP8 tiles that lie in
// shared memory, rows of 128 bytes along k, 16-byte pieces swizzled: piece p of row r stands at
// piece p ^ (r % 8), tiles aligned to 1024 bytes.
#pragma once

#include <cstdint>

#include "kernels/cuda/ptx/async_copy.cuh"

namespace reprise::kernels::cuda::ptx {

inline constexpr int kWgmmaRows = 64, kWgmmaColumns = 32, kWgmmaDepth = 32;
inline constexpr int kWgmmaValues = kWgmmaRows * kWgmmaColumns / 128;  // of a thread

// The tile at `shared`, from byte `k` of its rows on: the next eight rows come 1024 bytes later,
// the swizzle is that of 128 bytes.
__device__ inline uint64_t TileDescriptor(const void* shared, int k) {
  constexpr uint64_t kSwizzle128 = 1, kEightRows = 1024;
  const uint64_t address = SharedAddress(shared) + static_cast<uint32_t>(k);
  return (address & 0x3FFFF) >> 4 | uint64_t{1} << 16 | kEightRows >> 4 << 32 | kSwizzle128 << 62;
}

// Before the first product that uses registers written since.
__device__ inline void WgmmaFence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ inline void WgmmaCommit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
// Waits for all committed products.
__device__ inline void WgmmaWait() {
  asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
}

// d = a . b^T, or d += a . b^T with `adds`, over 32 bytes of k; e4m3, float32 sums. Thread t has
// rows 16 * (t / 32) + t % 32 / 4 + 8 * (i / 2 % 2) and columns 8 * (i / 4) + t % 4 * 2 + i % 2 of
// d[i].
__device__ inline void WgmmaE4m3(float (&d)[kWgmmaValues], uint64_t a, uint64_t b, bool adds) {
  asm volatile(
      "{\n"
      ".reg .pred p;\n"
      "setp.ne.b32 p, %18, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n32k32.f32.e4m3.e4m3 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15}, %16, %17, p, 1, 1;\n"
      "}\n"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]),
        "+f"(d[7]), "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]),
        "+f"(d[14]), "+f"(d[15])
      : "l"(a), "l"(b), "r"(adds ? 1 : 0));
}

}  // namespace reprise::kernels::cuda::ptx
