#include "emu/fiber.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <memory>
#include <vector>

#include "emu/options.h"

#if defined(SIMT_UCONTEXT)
#include <ucontext.h>
#endif
#if defined(SIMT_ASAN)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#if !defined(SIMT_UCONTEXT)
// Saves the callee-saved registers on the stack and its pointer in *save, then continues from `to`.
extern "C" void simt_switch(void** save, void* to);

#if defined(__x86_64__)
__asm__(
    ".text\n"
    ".globl simt_switch\n"
    ".hidden simt_switch\n"
    ".type simt_switch, @function\n"
    "simt_switch:\n"
    "  pushq %rbp\n  pushq %rbx\n  pushq %r12\n  pushq %r13\n  pushq %r14\n  pushq %r15\n"
    "  movq %rsp, (%rdi)\n"
    "  movq %rsi, %rsp\n"
    "  popq %r15\n  popq %r14\n  popq %r13\n  popq %r12\n  popq %rbx\n  popq %rbp\n"
    "  ret\n"
    ".size simt_switch, .-simt_switch\n");
constexpr size_t kFrameWords = 8;  // six registers, the entry, and the entry's return address
constexpr size_t kEntryWord = 6;
#else
__asm__(
    ".text\n"
    ".globl simt_switch\n"
    ".hidden simt_switch\n"
    ".type simt_switch, %function\n"
    "simt_switch:\n"
    "  sub sp, sp, #160\n"
    "  stp x19, x20, [sp, #0]\n  stp x21, x22, [sp, #16]\n  stp x23, x24, [sp, #32]\n"
    "  stp x25, x26, [sp, #48]\n  stp x27, x28, [sp, #64]\n  stp x29, x30, [sp, #80]\n"
    "  stp d8, d9, [sp, #96]\n  stp d10, d11, [sp, #112]\n"
    "  stp d12, d13, [sp, #128]\n  stp d14, d15, [sp, #144]\n"
    "  mov x9, sp\n"
    "  str x9, [x0]\n"
    "  mov sp, x1\n"
    "  ldp x19, x20, [sp, #0]\n  ldp x21, x22, [sp, #16]\n  ldp x23, x24, [sp, #32]\n"
    "  ldp x25, x26, [sp, #48]\n  ldp x27, x28, [sp, #64]\n  ldp x29, x30, [sp, #80]\n"
    "  ldp d8, d9, [sp, #96]\n  ldp d10, d11, [sp, #112]\n"
    "  ldp d12, d13, [sp, #128]\n  ldp d14, d15, [sp, #144]\n"
    "  add sp, sp, #160\n"
    "  ret\n"
    ".size simt_switch, .-simt_switch\n");
constexpr size_t kFrameWords = 20;
constexpr size_t kEntryWord = 11;  // x30
#endif
#endif

namespace simt {
namespace {

constexpr size_t kPage = 4096;
#if defined(SIMT_ASAN)
constexpr size_t kGuard = 0;  // redzones find more, and map entries of the OS are scarce
#else
constexpr size_t kGuard = kPage;
#endif
constexpr size_t kChunk = 64;  // stacks mapped at a time

std::vector<char*> chunks;
#if defined(SIMT_UCONTEXT)
std::vector<std::unique_ptr<ucontext_t>> contexts;
ucontext_t main_ucontext;
#else
void* main_context = nullptr;
#endif
#if defined(SIMT_ASAN)
void* main_fake_stack = nullptr;
const void* main_bottom = nullptr;
size_t main_size = 0;
#endif

size_t stack_bytes() { return options().stack_bytes; }

char* stack(size_t index) {
  const size_t stride = stack_bytes() + kGuard;
  while (chunks.size() <= index / kChunk) {
    void* p = mmap(nullptr, stride * kChunk, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) {
      perror("SIMT: no memory for stacks");
      abort();
    }
    chunks.push_back(static_cast<char*>(p));
    for (size_t i = 0; kGuard != 0 && i < kChunk; ++i) {
      mprotect(chunks.back() + i * stride, kGuard, PROT_NONE);
    }
  }
  return chunks[index / kChunk] + index % kChunk * stride + kGuard;
}

// Null for a fiber that never runs again.
void to_main(Fiber* fiber) {
#if defined(SIMT_ASAN)
  __sanitizer_start_switch_fiber(fiber != nullptr ? &fiber->fake_stack : nullptr, main_bottom,
                                 main_size);
#endif
#if defined(SIMT_UCONTEXT)
  static ucontext_t ended;
  swapcontext(fiber != nullptr ? static_cast<ucontext_t*>(fiber->context) : &ended, &main_ucontext);
#else
  void* ended;
  simt_switch(fiber != nullptr ? &fiber->context : &ended, main_context);
#endif
#if defined(SIMT_ASAN)
  if (fiber != nullptr) {
    __sanitizer_finish_switch_fiber(fiber->fake_stack, &main_bottom, &main_size);
  }
#endif
}

}  // namespace

void fiber_prepare(Fiber& fiber, size_t index, void (*entry)()) {
  fiber.stack = stack(index);
  fiber.fake_stack = nullptr;
#if defined(SIMT_ASAN)
  // The stack's last fiber may have ended inside of nested functions.
  __asan_unpoison_memory_region(fiber.stack, stack_bytes());
#endif
#if defined(SIMT_UCONTEXT)
  while (contexts.size() <= index) contexts.push_back(std::make_unique<ucontext_t>());
  ucontext_t* context = contexts[index].get();
  getcontext(context);
  context->uc_stack.ss_sp = fiber.stack;
  context->uc_stack.ss_size = stack_bytes();
  context->uc_link = nullptr;
  makecontext(context, entry, 0);
  fiber.context = context;
#else
  // Stack tops have different offsets in their pages; otherwise all threads share a few cache sets.
  char* top = fiber.stack + stack_bytes() - index * 192 % kPage;
  uintptr_t* frame = reinterpret_cast<uintptr_t*>(top) - kFrameWords;
  memset(frame, 0, kFrameWords * sizeof *frame);
  frame[kEntryWord] = reinterpret_cast<uintptr_t>(entry);
  fiber.context = frame;
#endif
}

void fiber_started() {
#if defined(SIMT_ASAN)
  __sanitizer_finish_switch_fiber(nullptr, &main_bottom, &main_size);
#endif
}

void fiber_enter(Fiber& fiber) {
#if defined(SIMT_ASAN)
  __sanitizer_start_switch_fiber(&main_fake_stack, fiber.stack, stack_bytes());
#endif
#if defined(SIMT_UCONTEXT)
  swapcontext(&main_ucontext, static_cast<ucontext_t*>(fiber.context));
#else
  simt_switch(&main_context, fiber.context);
#endif
#if defined(SIMT_ASAN)
  __sanitizer_finish_switch_fiber(main_fake_stack, nullptr, nullptr);
#endif
}

void fiber_leave(Fiber& fiber) { to_main(&fiber); }

void fiber_end() {
  to_main(nullptr);
  abort();
}

bool in_stack_guard(const void* p) {
  const size_t stride = stack_bytes() + kGuard;
  return std::any_of(chunks.begin(), chunks.end(), [&](const char* chunk) {
    const size_t offset = static_cast<size_t>(static_cast<const char*>(p) - chunk);
    return offset < stride * kChunk && offset % stride < kGuard;
  });
}

}  // namespace simt
