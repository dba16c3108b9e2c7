// Integer, bit and rounding intrinsics, computed on the host as the device computes them.
#ifndef SIMT_EMU_BITS_H
#define SIMT_EMU_BITS_H

#include <limits.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

namespace simt {

template <class To, class From>
inline To bit_cast(From v) {
  static_assert(sizeof(To) == sizeof(From), "the same number of bits");
  To to;
  memcpy(&to, &v, sizeof to);
  return to;
}

// A rounded float as an integer. It saturates; NaN becomes zero.
template <class Int>
inline Int saturate(float rounded, Int least, Int greatest) {
  if (rounded != rounded) return 0;
  if (static_cast<double>(rounded) <= static_cast<double>(least)) return least;
  if (static_cast<double>(rounded) >= static_cast<double>(greatest)) return greatest;
  return static_cast<Int>(rounded);
}

}  // namespace simt

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x)); }
inline int __clzll(long long x) {
  return x == 0 ? 64 : __builtin_clzll(static_cast<unsigned long long>(x));
}

inline unsigned __brev(unsigned x) {
  unsigned y = 0;
  for (int i = 0; i < 32; ++i) y |= ((x >> i) & 1u) << (31 - i);
  return y;
}
inline unsigned long long __brevll(unsigned long long x) {
  return static_cast<unsigned long long>(__brev(static_cast<unsigned>(x))) << 32 |
         __brev(static_cast<unsigned>(x >> 32));
}

inline unsigned __funnelshift_l(unsigned lo, unsigned hi, unsigned shift) {
  return static_cast<unsigned>(((static_cast<uint64_t>(hi) << 32 | lo) << (shift & 31)) >> 32);
}
inline unsigned __funnelshift_lc(unsigned lo, unsigned hi, unsigned shift) {
  return shift >= 32 ? lo : __funnelshift_l(lo, hi, shift);
}
inline unsigned __funnelshift_r(unsigned lo, unsigned hi, unsigned shift) {
  return static_cast<unsigned>((static_cast<uint64_t>(hi) << 32 | lo) >> (shift & 31));
}
inline unsigned __funnelshift_rc(unsigned lo, unsigned hi, unsigned shift) {
  return shift >= 32 ? hi : __funnelshift_r(lo, hi, shift);
}

// Byte i of the result is the byte of y:x that nibble i of s names, or (bit 3) its sign spread.
inline unsigned __byte_perm(unsigned x, unsigned y, unsigned s) {
  const uint64_t bytes = static_cast<uint64_t>(y) << 32 | x;
  unsigned result = 0;
  for (int i = 0; i < 4; ++i) {
    const unsigned pick = s >> (4 * i);
    const unsigned byte = static_cast<unsigned>(bytes >> (8 * (pick & 7))) & 0xFFu;
    result |= ((pick & 8) == 0 ? byte : ((byte & 0x80u) != 0 ? 0xFFu : 0u)) << (8 * i);
  }
  return result;
}

inline unsigned __umulhi(unsigned a, unsigned b) {
  return static_cast<unsigned>((static_cast<uint64_t>(a) * b) >> 32);
}
inline int __mulhi(int a, int b) { return static_cast<int>((static_cast<int64_t>(a) * b) >> 32); }
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
  return static_cast<unsigned long long>((static_cast<unsigned __int128>(a) * b) >> 64);
}
inline long long __mul64hi(long long a, long long b) {
  return static_cast<long long>((static_cast<__int128>(a) * b) >> 64);
}

inline unsigned __float_as_uint(float x) { return simt::bit_cast<unsigned>(x); }
inline int __float_as_int(float x) { return simt::bit_cast<int>(x); }
inline float __uint_as_float(unsigned x) { return simt::bit_cast<float>(x); }
inline float __int_as_float(int x) { return simt::bit_cast<float>(x); }
inline long long __double_as_longlong(double x) { return simt::bit_cast<long long>(x); }
inline double __longlong_as_double(long long x) { return simt::bit_cast<double>(x); }

// The build turns contraction off, so each of these is one correctly rounded operation.
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fsqrt_rn(float x) { return sqrtf(x); }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline double __fma_rn(double a, double b, double c) { return fma(a, b, c); }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __ddiv_rn(double a, double b) { return a / b; }

inline int __float2int_rn(float x) { return simt::saturate(nearbyintf(x), INT_MIN, INT_MAX); }
inline int __float2int_rz(float x) { return simt::saturate(truncf(x), INT_MIN, INT_MAX); }
inline int __float2int_rd(float x) { return simt::saturate(floorf(x), INT_MIN, INT_MAX); }
inline int __float2int_ru(float x) { return simt::saturate(ceilf(x), INT_MIN, INT_MAX); }
inline unsigned __float2uint_rn(float x) { return simt::saturate(nearbyintf(x), 0u, UINT_MAX); }
inline unsigned __float2uint_rz(float x) { return simt::saturate(truncf(x), 0u, UINT_MAX); }
inline float __int2float_rn(int x) { return static_cast<float>(x); }
inline float __uint2float_rn(unsigned x) { return static_cast<float>(x); }
inline float __ll2float_rn(long long x) { return static_cast<float>(x); }
inline float __ull2float_rn(unsigned long long x) { return static_cast<float>(x); }
inline float __double2float_rn(double x) { return static_cast<float>(x); }

#define SIMT_MIN_MAX(T)                               \
  constexpr T min(T a, T b) { return b < a ? b : a; } \
  constexpr T max(T a, T b) { return a < b ? b : a; }
SIMT_MIN_MAX(int)
SIMT_MIN_MAX(unsigned)
SIMT_MIN_MAX(long)
SIMT_MIN_MAX(unsigned long)
SIMT_MIN_MAX(long long)
SIMT_MIN_MAX(unsigned long long)
#undef SIMT_MIN_MAX
// CUDA's mixed forms compare as unsigned.
#define SIMT_MIXED(S, U)                                          \
  constexpr U min(S a, U b) { return min(static_cast<U>(a), b); } \
  constexpr U min(U a, S b) { return min(a, static_cast<U>(b)); } \
  constexpr U max(S a, U b) { return max(static_cast<U>(a), b); } \
  constexpr U max(U a, S b) { return max(a, static_cast<U>(b)); }
SIMT_MIXED(int, unsigned)
SIMT_MIXED(long, unsigned long)
SIMT_MIXED(long long, unsigned long long)
#undef SIMT_MIXED
// Of a NaN and a number they return the number.
inline float min(float a, float b) { return fminf(a, b); }
inline float max(float a, float b) { return fmaxf(a, b); }
inline double min(double a, double b) { return fmin(a, b); }
inline double max(double a, double b) { return fmax(a, b); }

#endif
