// Philox4x32-10, the counter-based generator: the numbers of a counter need no state, so a draw can
// be made again wherever a trajectory goes on. Source: Salmon et al., "Parallel random numbers: as
// easy as 1, 2, 3" (SC 2011).
#pragma once

#include <array>
#include <cstdint>

#include "kernels/host_device.h"

namespace reprise::kernels {

REPRISE_BOTH inline std::array<uint32_t, 4> Philox4x32(std::array<uint32_t, 4> counter,
                                                       std::array<uint32_t, 2> key) {
  constexpr uint32_t kMultiplier0 = 0xD2511F53, kMultiplier1 = 0xCD9E8D57;
  constexpr uint32_t kWeyl0 = 0x9E3779B9, kWeyl1 = 0xBB67AE85;
  constexpr int kRounds = 10;
  for (int round = 0; round < kRounds; ++round) {
    const uint64_t a = uint64_t{kMultiplier0} * counter[0];
    const uint64_t b = uint64_t{kMultiplier1} * counter[2];
    counter = {static_cast<uint32_t>(b >> 32) ^ counter[1] ^ key[0], static_cast<uint32_t>(b),
               static_cast<uint32_t>(a >> 32) ^ counter[3] ^ key[1], static_cast<uint32_t>(a)};
    key[0] += kWeyl0;
    key[1] += kWeyl1;
  }
  return counter;
}

// The draw of a trajectory at a position: uniform in [0, 1) with 53 bits.
REPRISE_BOTH inline double UniformAt(uint64_t seed, uint64_t position) {
  const std::array<uint32_t, 4> bits =
      Philox4x32({static_cast<uint32_t>(position), static_cast<uint32_t>(position >> 32), 0, 0},
                 {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)});
  const uint64_t mantissa = (uint64_t{bits[0]} << 21) ^ (bits[1] >> 11);
  return static_cast<double>(mantissa) * 0x1.0p-53;
}

}  // namespace reprise::kernels
