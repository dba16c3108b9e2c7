// FP16 and BF16 conversions: exact widening, nearest, directed and stochastic narrowing
// (docs/numerics.md, section 2). Stochastic rounding takes 16 random bits r.
#ifndef MPEMBED_ROUND_H
#define MPEMBED_ROUND_H

#include "mpembed/lanes.h"
#include "mpembed/macros.h"

#if defined(__F16C__) && !defined(__CUDACC__)
#include <immintrin.h>
#endif

MPE_BEGIN

// FP16 codes in an int32_t or a vector of them, as the types of kernels/cpu/lanes.h have it. A
// device has one value only, and an instruction that is as exact, except for NaNs.
template <class K>
MPE_HD auto half_value(K h) {
#if defined(__CUDA_ARCH__)
  float x;
  asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(static_cast<uint16_t>(h)));
  return x;
#else
  const auto u = (h & 0x7FFF) << 13;
  // 2^112 moves the exponent bias from 15 to 127, subnormals included; infinities and NaNs follow.
  const auto finite = int_bits(bits_value(u) * 5.192296858534828e33f);
  const auto magnitude = select(u > 0x0F7FFFFF, u | 0x7F800000, finite);
  return bits_value(magnitude | ((h & 0x8000) << 16));
#endif
}

MPE_HD float half_to_float(uint16_t h) {
#if defined(__F16C__) && !defined(__CUDACC__)
  return _cvtsh_ss(h);  // exact too; a signaling NaN becomes a quiet one
#else
  return half_value(static_cast<int32_t>(h));
#endif
}

// |x| in units of 2^-16 of the FP16 step at x, and the code's exponent part.
struct HalfSplit {
  uint32_t fixed;
  uint32_t base;
};

MPE_HD HalfSplit half_split(float x) {
  const uint32_t a = float_bits(x) & 0x7FFFFFFFu;
  const uint32_t biased = a >> 23;
  const uint32_t e = biased > 113u ? biased : 113u;
  // Times 2^(153 - e): exact, and below 2^28.
  const float y = bits_float(a) * bits_float((280u - e) << 23);
  const int32_t t = static_cast<int32_t>(y);
  const int32_t up = y - static_cast<float>(t) >= 0.5f ? 1 : 0;
  return HalfSplit{static_cast<uint32_t>(t + up), (e - 113u) << 10};
}

// x finite, |x| <= 65504.
MPE_HD uint16_t half_stochastic(float x, uint32_t r) {
  const HalfSplit s = half_split(x);
  const uint32_t sign = (float_bits(x) >> 16) & 0x8000u;
  return static_cast<uint16_t>(sign | (s.base + ((s.fixed + r) >> 16)));
}

// Round to nearest even; x finite, |x| <= 65504. Adding a power of two whose float spacing is the
// FP16 step at x makes the adder do the rounding.
template <class X>
MPE_HD auto half_code(X x) {
#if defined(__CUDA_ARCH__)
  uint16_t code;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(code) : "f"(x));
  return static_cast<int32_t>(code);
#else
  const auto bits = int_bits(x);
  const auto a = bits & 0x7FFFFFFF;
  const auto e = larger(a >> 23, 113);
  const auto magic = (e + 13) << 23;  // spacing 2^(e - 127 - 10)
  const auto m = int_bits(bits_value(a) + bits_value(magic)) - magic;
  return ((bits >> 16) & 0x8000) | (((e - 113) << 10) + m);
#endif
}

MPE_HD uint16_t half_nearest(float x) { return static_cast<uint16_t>(half_code(x)); }

// Towards minus infinity; |x| <= 65504. Zero becomes +0.
template <class X>
MPE_HD auto half_code_down(X x) {
  auto h = half_code(x);
  h = select((h & 0x7FFF) == 0, 0, h);
  // One step down on the number line.
  const auto below = select(h == 0, 0x8001, select((h & 0x8000) == 0, h - 1, h + 1));
  return select(half_value(h) > x, below, h);
}

// Towards plus infinity; 0 <= x <= 65504.
template <class X>
MPE_HD auto half_code_up(X x) {
  const auto h = half_code(x);
  return select(x > half_value(h), h + 1, h);
}

// Round to nearest even as IEEE 754 has it, any value: what is too large becomes infinite.
template <class X>
MPE_HD auto half_code_of_any(X x) {
#if defined(__CUDA_ARCH__)
  return half_code(x);
#else
  const auto bits = int_bits(x);
  const auto a = bits & 0x7FFFFFFF;
  // 65536 and more are one code, which is that of infinity.
  const auto code = half_code(bits_value(select(a > 0x47800000, 0x47800000, a)));
  return ((bits >> 16) & 0x8000) | select(a > 0x7F800000, 0x7E00, code);
#endif
}

template <class K>
MPE_HD auto bfloat_value(K code) {
  return bits_value(code << 16);
}

// x finite, |x| <= the largest BF16.
MPE_HD uint16_t bfloat_stochastic(float x, uint32_t r) {
  return static_cast<uint16_t>((float_bits(x) + r) >> 16);
}

MPE_HD uint16_t bfloat_nearest(float x) {
  const uint32_t u = float_bits(x);
  return static_cast<uint16_t>((u + 0x7FFFu + ((u >> 16) & 1u)) >> 16);
}

// Round to nearest even as half_code_of_any does; only the code's low 16 bits count.
template <class X>
MPE_HD auto bfloat_code_of_any(X x) {
  const auto given = int_bits(x);
  const auto bits = select((given & 0x7FFFFFFF) > 0x7F800000, 0x7FC00000, given);
  return (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16;
}

MPE_END

#endif
