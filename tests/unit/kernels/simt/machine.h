// A machine with CUDA's programming model on one processor thread: it runs the very sources of
// kernels/cuda, launchers included, that nvcc compiles. The threads of a block are fibers that meet
// at barriers and shuffles; blocks run one after the other.
//
// What it looks for beside wrong results: a launch runs twice from the same memory, its threads and
// blocks in two different orders, and must leave the same bits (a missing barrier, a result that
// depends on the order of blocks); barriers that only some threads reach, or that threads reach at
// different places; shuffles from lanes that do not take part; reads of what nobody wrote (fresh
// memory is 0xFF: NaN, or -1) and accesses outside an array (no access behind it; a canary in its
// last bytes).
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <source_location>
#include <type_traits>

#include "absl/status/status.h"
#include "kernels/cuda/grid.h"

namespace reprise::kernels::simt {

inline constexpr int kWarpSize = 32;
inline constexpr int kThreadsMax = 1024;         // of a block
inline constexpr size_t kSharedMax = 227 << 10;  // bytes of a block, as compute capability 9.0

// Runs `body` once a thread. INTERNAL names kernel, block, thread and source line of what is wrong.
absl::Status Run(const char* kernel, const cuda::Grid& grid, int threads, size_t shared_bytes,
                 const std::function<void()>& body);

// The running block's; `bytes` must be what the launch gave.
void* SharedMemory(size_t bytes);

// Where it begins, whatever its size; aligned to 1024 where its size is a multiple of that.
void* SharedBase();

// Where a lane's value comes from.
enum class Exchange { kNothing, kXor, kDown, kUp, kLane, kBallot };

void WaitForBlock(const std::source_location& at);
// All lanes of `mask` meet; the bits of the value of the lane that `how` and `operand` name.
uint64_t WaitForWarp(uint32_t mask, Exchange how, int operand, uint64_t bits,
                     const std::source_location& at);

template <typename T>
T ExchangeValue(uint32_t mask, Exchange how, T value, int operand, const std::source_location& at) {
  static_assert(sizeof(T) <= sizeof(uint64_t) && std::is_trivially_copyable_v<T>);
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  bits = WaitForWarp(mask, how, operand, bits, at);
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

}  // namespace reprise::kernels::simt
