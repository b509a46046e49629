#include "tests/unit/kernels/simt/fiber.h"

#include <cstdint>

#if !defined(REPRISE_SIMT_UCONTEXT)
// Keeps what a call must keep (rbx, rbp, r12 to r15) on the stack that is left, and goes on with
// the other one.
extern "C" void reprise_simt_switch(void** left, void* entered);
asm(R"(
.text
.type reprise_simt_switch, @function
reprise_simt_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size reprise_simt_switch, . - reprise_simt_switch
)");
#endif

namespace reprise::kernels::simt {

#if defined(REPRISE_SIMT_UCONTEXT)

void Fiber::Start(void (*main)()) {
  ::getcontext(&inside_);
  inside_.uc_stack.ss_sp = stack_.data();
  inside_.uc_stack.ss_size = stack_.size();
  inside_.uc_link = nullptr;
  ::makecontext(&inside_, main, 0);
}
void Fiber::Resume() { ::swapcontext(&outside_, &inside_); }
void Fiber::Leave() { ::swapcontext(&inside_, &outside_); }

#else

void Fiber::Start(void (*main)()) {
  constexpr int kKept = 6;
  // A function finds its stack 8 bytes off a multiple of 16, as after a call.
  uintptr_t* top = reinterpret_cast<uintptr_t*>(stack_.data() + stack_.size());
  *--top = 0;
  *--top = reinterpret_cast<uintptr_t>(main);
  for (int i = 0; i < kKept; ++i) *--top = 0;
  inside_ = top;
}
void Fiber::Resume() { reprise_simt_switch(&outside_, inside_); }
void Fiber::Leave() { reprise_simt_switch(&inside_, outside_); }

#endif

}  // namespace reprise::kernels::simt
