// What kernels/cuda/ptx/wgmma.cuh declares, for the machine of machine.h: descriptors are read as
// the hardware reads them, and products happen when their thread waits for them.
#pragma once

#include <cstdint>

#include "kernels/cuda/ptx/async_copy.cuh"
#include "kernels/formats.h"

namespace reprise::kernels::cuda::ptx {

inline constexpr int kWgmmaRows = 64, kWgmmaColumns = 32, kWgmmaDepth = 32;
inline constexpr int kWgmmaValues = kWgmmaRows * kWgmmaColumns / 128;

// Byte `k` of row `row` of a tile: the swizzle takes bits 7 to 9 of the address into bits 4 to 6.
struct TileDescriptor {
  TileDescriptor(const void* shared, int k)
      : base(static_cast<const uint8_t*>(simt::SharedBase())),
        start(static_cast<uint32_t>(static_cast<const uint8_t*>(shared) - base) +
              static_cast<uint32_t>(k)) {}
  float Read(int row, int k) const {
    const uint32_t at = start + static_cast<uint32_t>(row / 8 * 1024 + row % 8 * 128 + k);
    return WidenE4m3(base[at ^ (at >> 7 & 7) << 4]);
  }
  const uint8_t* base;
  uint32_t start;
};

inline void WgmmaFence() {}
inline void WgmmaCommit() { products_of[threadIdx.x].Commit(); }
inline void WgmmaWait() { products_of[threadIdx.x].Wait(0); }

inline void WgmmaE4m3(float (&d)[kWgmmaValues], TileDescriptor a, TileDescriptor b, bool adds) {
  const int thread = static_cast<int>(threadIdx.x);
  float* out = d;
  products_of[thread].open.push_back([=] {
    for (int i = 0; i < kWgmmaValues; ++i) {
      const int row = 16 * (thread / 32) + thread % 32 / 4 + 8 * (i / 2 % 2);
      const int column = 8 * (i / 4) + thread % 4 * 2 + i % 2;
      float sum = adds ? out[i] : 0.0f;
      for (int k = 0; k < kWgmmaDepth; ++k) sum += a.Read(row, k) * b.Read(column, k);
      out[i] = sum;
    }
  });
}

}  // namespace reprise::kernels::cuda::ptx
