// Fibers: a stack and saved registers per CUDA thread. Only the launching thread switches.
#ifndef SIMT_EMU_FIBER_H
#define SIMT_EMU_FIBER_H

#include <stddef.h>

#if defined(__SANITIZE_ADDRESS__)
#define SIMT_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define SIMT_ASAN 1
#endif
#endif

#if !defined(__x86_64__) && !defined(__aarch64__) && !defined(SIMT_UCONTEXT)
#define SIMT_UCONTEXT 1
#endif

namespace simt {

struct Fiber {
  void* context = nullptr;  // its stack pointer, or its ucontext_t
  char* stack = nullptr;
  void* fake_stack = nullptr;  // AddressSanitizer's
};

// Gives the fiber the pool's stack number `index` and a start in `entry`, which calls
// fiber_started() first and never returns.
void fiber_prepare(Fiber& fiber, size_t index, void (*entry)());
void fiber_started();

// Switches from the scheduler into a fiber; returns when the fiber leaves.
void fiber_enter(Fiber& fiber);
// Switches back to the scheduler; returns when the fiber is entered again.
void fiber_leave(Fiber& fiber);
// The same, never to return.
[[noreturn]] void fiber_end();

// Whether p lies in the guard below a stack.
bool in_stack_guard(const void* p);

}  // namespace simt

#endif
