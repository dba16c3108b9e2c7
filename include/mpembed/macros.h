// Shared by every header: host/device markers, the namespace, and the few bit-level helpers.
#ifndef MPEMBED_MACROS_H
#define MPEMBED_MACROS_H

#include "mpembed/integers.h"

#if defined(__CUDACC_RTC__)
#define INFINITY __int_as_float(0x7F800000)  // NVRTC has functions built in, but no headers
#else
#include <math.h>
#include <string.h>
#endif

#if defined(__CUDACC__)
#define MPE_HD __host__ __device__ __forceinline__
#else
#define MPE_HD inline __attribute__((always_inline))
#endif

// The CPU kernels compile these headers once per instruction set. Each level gets a namespace of
// its own, so that the linker can never replace one level's inline function by another level's.
#define MPE_CONCAT2(a, b) a##b
#define MPE_CONCAT(a, b) MPE_CONCAT2(a, b)
#if defined(MPE_ISA)
#define MPE_NAMESPACE MPE_CONCAT(isa_, MPE_ISA)
#else
#define MPE_NAMESPACE generic
#endif
#define MPE_BEGIN     \
  namespace mpembed { \
  inline namespace MPE_NAMESPACE {
#define MPE_END \
  }             \
  }

MPE_BEGIN

MPE_HD uint32_t float_bits(float x) {
  uint32_t u;
  memcpy(&u, &x, sizeof u);
  return u;
}

MPE_HD float bits_float(uint32_t u) {
  float x;
  memcpy(&x, &u, sizeof x);
  return x;
}

// Rows need no alignment. A device has no unaligned access, and copies byte by byte where it must.
template <class T>
MPE_HD T load_unaligned(const void* p) {
#if defined(__CUDA_ARCH__)
  if (reinterpret_cast<uintptr_t>(p) % sizeof(T) == 0) return *static_cast<const T*>(p);
#endif
  T v;
  memcpy(&v, p, sizeof v);
  return v;
}

template <class T>
MPE_HD void store_unaligned(void* p, T v) {
#if defined(__CUDA_ARCH__)
  if (reinterpret_cast<uintptr_t>(p) % sizeof(T) == 0) {
    *static_cast<T*>(p) = v;
    return;
  }
#endif
  memcpy(p, &v, sizeof v);
}

MPE_END

#endif
