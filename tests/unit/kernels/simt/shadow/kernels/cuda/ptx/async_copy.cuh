// What kernels/cuda/ptx/async_copy.cuh declares, for the machine of machine.h. A copy happens when
// its thread waits for it and not before, so that a wait that is missing shows.
#pragma once

#include <array>
#include <cstdint>
#include <cstring>
#include <deque>
#include <functional>
#include <vector>

#include "tests/unit/kernels/simt/machine.h"

namespace reprise::kernels::cuda::ptx {

struct ThreadWork {
  std::vector<std::function<void()>> open;
  std::deque<std::vector<std::function<void()>>> committed;

  void Commit() {
    committed.push_back(std::move(open));
    open.clear();
  }
  void Wait(size_t pending) {
    for (; committed.size() > pending; committed.pop_front()) {
      for (const auto& work : committed.front()) work();
    }
  }
};

inline std::array<ThreadWork, simt::kThreadsMax> copies_of, products_of;

inline void CopyAsync(void* shared, const void* global, bool exists) {
  copies_of[threadIdx.x].open.push_back([=] {
    if (exists) {
      std::memcpy(shared, global, 16);
    } else {
      std::memset(shared, 0, 16);
    }
  });
}

inline void CommitCopies() { copies_of[threadIdx.x].Commit(); }

template <int kPending>
void WaitCopies() {
  copies_of[threadIdx.x].Wait(kPending);
}

inline void FenceForTensorCores() {}

}  // namespace reprise::kernels::cuda::ptx
