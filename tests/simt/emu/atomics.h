// Atomics. Only one emulated thread runs at a time, so a plain operation between two points of
// preemption is atomic.
#ifndef SIMT_EMU_ATOMICS_H
#define SIMT_EMU_ATOMICS_H

#include "emu/engine.h"

namespace simt {

template <class T, class F>
inline T atomic(T* p, Site site, F next) {
  preempt();
  check_access(p, sizeof(T), sizeof(T), site);
  T old;
  {
#if defined(SIMT_INSTRUMENT)  // in other builds nothing in here is a point of preemption
    const Uninterrupted rest;
#endif
    old = *p;
    *p = next(old);
  }
  preempt();
  return old;
}

}  // namespace simt

// Also for the scopes _block and _system, which make no difference here.
#define SIMT_ATOMIC1(name, T, expression)                                            \
  inline T name(T* p, T v, simt::Site site = simt::Site::here()) {                   \
    return simt::atomic(p, site, [v](T old) { return static_cast<T>(expression); }); \
  }
#define SIMT_ATOMIC(name, T, expression)    \
  SIMT_ATOMIC1(name, T, expression)         \
  SIMT_ATOMIC1(name##_block, T, expression) \
  SIMT_ATOMIC1(name##_system, T, expression)

// Sums wrap around, as they do in hardware.
#define SIMT_INTEGERS(T, U)                                          \
  SIMT_ATOMIC(atomicAdd, T, static_cast<U>(old) + static_cast<U>(v)) \
  SIMT_ATOMIC(atomicExch, T, (static_cast<void>(old), v))            \
  SIMT_ATOMIC(atomicMin, T, old < v ? old : v)                       \
  SIMT_ATOMIC(atomicMax, T, old > v ? old : v)                       \
  SIMT_ATOMIC(atomicAnd, T, old& v)                                  \
  SIMT_ATOMIC(atomicOr, T, old | v)                                  \
  SIMT_ATOMIC(atomicXor, T, old ^ v)
SIMT_INTEGERS(int, unsigned)
SIMT_INTEGERS(unsigned, unsigned)
SIMT_INTEGERS(unsigned long long, unsigned long long)
SIMT_ATOMIC(atomicMin, long long, old < v ? old : v)
SIMT_ATOMIC(atomicMax, long long, old > v ? old : v)
SIMT_ATOMIC(atomicSub, int, static_cast<unsigned>(old) - static_cast<unsigned>(v))
SIMT_ATOMIC(atomicSub, unsigned, old - v)
SIMT_ATOMIC(atomicInc, unsigned, old >= v ? 0u : old + 1u)
SIMT_ATOMIC(atomicDec, unsigned, old == 0u || old > v ? v : old - 1u)
SIMT_ATOMIC(atomicAdd, float, old + v)
SIMT_ATOMIC(atomicAdd, double, old + v)
SIMT_ATOMIC(atomicExch, float, (static_cast<void>(old), v))

#define SIMT_CAS1(name, T)                                                          \
  inline T name(T* p, T expected, T v, simt::Site site = simt::Site::here()) {      \
    return simt::atomic(p, site, [=](T old) { return old == expected ? v : old; }); \
  }
#define SIMT_CAS(T)             \
  SIMT_CAS1(atomicCAS, T)       \
  SIMT_CAS1(atomicCAS_block, T) \
  SIMT_CAS1(atomicCAS_system, T)
SIMT_CAS(int)
SIMT_CAS(unsigned)
SIMT_CAS(unsigned long long)
SIMT_CAS(unsigned short)
#undef SIMT_CAS
#undef SIMT_CAS1
#undef SIMT_INTEGERS
#undef SIMT_ATOMIC
#undef SIMT_ATOMIC1

#endif
