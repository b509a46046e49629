// cp.async: copies from global to shared memory that a thread starts and waits for later.
#pragma once

#include <cstdint>

namespace reprise::kernels::cuda::ptx {

// The address of shared memory that PTX means.
__device__ inline uint32_t SharedAddress(const void* shared) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(shared));
}

// 16 bytes to `shared`, zeros where not `exists`; both aligned to 16.
__device__ inline void CopyAsync(void* shared, const void* global, bool exists) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(SharedAddress(shared)),
               "l"(global), "r"(exists ? 16 : 0)
               : "memory");
}

// Ends a group of this thread's copies.
__device__ inline void CommitCopies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most kPending of this thread's groups are not there, oldest first.
template <int kPending>
__device__ void WaitCopies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// Makes what this thread wrote to shared memory visible to the tensor cores; a barrier follows.
__device__ inline void FenceForTensorCores() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

}  // namespace reprise::kernels::cuda::ptx
