// A function on a stack of its own that can be left in the middle and gone back to. On x86-64 a
// switch is a few instructions; elsewhere, and where a sanitizer has to see it, it is ucontext's,
// which asks the kernel each time.
#pragma once

#include "tests/unit/kernels/simt/memory.h"

#if !defined(__x86_64__) || defined(REPRISE_SANITIZED)
#define REPRISE_SIMT_UCONTEXT
#include <ucontext.h>
#endif

namespace reprise::kernels::simt {

class Fiber {
 public:
  Fiber() : stack_(kStackBytes) {}
  // The next Resume begins `main`, which must not return.
  void Start(void (*main)());
  // Runs it until it leaves.
  void Resume();
  // Back to who resumed it. REQUIRES: this one runs.
  void Leave();

 private:
  static constexpr size_t kStackBytes = 128 << 10;

  GuardedBytes stack_;
#if defined(REPRISE_SIMT_UCONTEXT)
  ucontext_t inside_, outside_;
#else
  void* inside_ = nullptr;
  void* outside_ = nullptr;
#endif
};

}  // namespace reprise::kernels::simt
