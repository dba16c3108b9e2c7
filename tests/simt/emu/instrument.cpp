// With build(..., instrument=True) the compiler announces every access to memory through
// ThreadSanitizer's interface. The functions here replace that library and make the accesses points
// of preemption: volatile ones as often as atomics, plain ones now and then.
#include <stdint.h>

#include "emu/state.h"

using simt::plain_access;

// Hidden, because a process may also load the real library.
#pragma GCC visibility push(hidden)

extern "C" {

void __tsan_init(void) {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit(void) {}
void __tsan_vptr_update(void*, void*) {}
void __tsan_vptr_read(void*) {}
void __tsan_read_range(void*, unsigned long) { plain_access(); }
void __tsan_write_range(void*, unsigned long) { plain_access(); }

#define SIMT_ACCESS(n)                                               \
  void __tsan_read##n(void*) { plain_access(); }                     \
  void __tsan_write##n(void*) { plain_access(); }                    \
  void __tsan_unaligned_read##n(void*) { plain_access(); }           \
  void __tsan_unaligned_write##n(void*) { plain_access(); }          \
  void __tsan_volatile_read##n(void*) { simt::preempt(); }           \
  void __tsan_volatile_write##n(void*) { simt::preempt(); }          \
  void __tsan_unaligned_volatile_read##n(void*) { simt::preempt(); } \
  void __tsan_unaligned_volatile_write##n(void*) { simt::preempt(); }
SIMT_ACCESS(1)
SIMT_ACCESS(2)
SIMT_ACCESS(4)
SIMT_ACCESS(8)
SIMT_ACCESS(16)

// For std::atomic in host code.
#define SIMT_UPDATE(bits, name, builtin)                                                           \
  uint##bits##_t __tsan_atomic##bits##_##name(volatile uint##bits##_t* p, uint##bits##_t v, int) { \
    return builtin(p, v, __ATOMIC_SEQ_CST);                                                        \
  }
#define SIMT_ATOMICS(bits)                                                                         \
  uint##bits##_t __tsan_atomic##bits##_load(const volatile uint##bits##_t* p, int) {               \
    return __atomic_load_n(p, __ATOMIC_SEQ_CST);                                                   \
  }                                                                                                \
  void __tsan_atomic##bits##_store(volatile uint##bits##_t* p, uint##bits##_t v, int) {            \
    __atomic_store_n(p, v, __ATOMIC_SEQ_CST);                                                      \
  }                                                                                                \
  int __tsan_atomic##bits##_compare_exchange_strong(                                               \
      volatile uint##bits##_t* p, uint##bits##_t* expected, uint##bits##_t v, int, int) {          \
    return __atomic_compare_exchange_n(p, expected, v, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST); \
  }                                                                                                \
  SIMT_UPDATE(bits, exchange, __atomic_exchange_n)                                                 \
  SIMT_UPDATE(bits, fetch_add, __atomic_fetch_add)                                                 \
  SIMT_UPDATE(bits, fetch_sub, __atomic_fetch_sub)                                                 \
  SIMT_UPDATE(bits, fetch_and, __atomic_fetch_and)                                                 \
  SIMT_UPDATE(bits, fetch_or, __atomic_fetch_or)                                                   \
  SIMT_UPDATE(bits, fetch_xor, __atomic_fetch_xor)
SIMT_ATOMICS(8)
SIMT_ATOMICS(16)
SIMT_ATOMICS(32)
SIMT_ATOMICS(64)
}

#pragma GCC visibility pop
