// FP16 and BF16 conversions: exact widening, nearest, directed and stochastic narrowing
// (docs/numerics.md, section 2). Stochastic rounding takes 16 random bits r.
#ifndef MPEMBED_ROUND_H
#define MPEMBED_ROUND_H

#include "mpembed/macros.h"

MPE_BEGIN

MPE_HD float half_to_float(uint16_t h) {
  const uint32_t u = static_cast<uint32_t>(h & 0x7FFFu) << 13;
  // 2^112 moves the exponent bias from 15 to 127, subnormals included; infinities and NaNs follow.
  const uint32_t finite = float_bits(bits_float(u) * 5.192296858534828e33f);
  const uint32_t magnitude = u >= 0x0F800000u ? (u | 0x7F800000u) : finite;
  return bits_float(magnitude | (static_cast<uint32_t>(h & 0x8000u) << 16));
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
MPE_HD uint16_t half_nearest(float x) {
  const uint32_t a = float_bits(x) & 0x7FFFFFFFu;
  const uint32_t biased = a >> 23;
  const uint32_t e = biased > 113u ? biased : 113u;
  const uint32_t magic = (e + 13u) << 23;  // spacing 2^(e - 127 - 10)
  const uint32_t m = float_bits(bits_float(a) + bits_float(magic)) - magic;
  const uint32_t sign = (float_bits(x) >> 16) & 0x8000u;
  return static_cast<uint16_t>(sign | (((e - 113u) << 10) + m));
}

// Towards minus infinity; |x| <= 65504. Zero becomes +0.
MPE_HD uint16_t half_down(float x) {
  uint16_t h = half_nearest(x);
  if ((h & 0x7FFFu) == 0) h = 0;
  if (half_to_float(h) > x) {
    // One step down on the number line.
    h = static_cast<uint16_t>(h == 0 ? 0x8001u : (h & 0x8000u) ? h + 1u : h - 1u);
  }
  return h;
}

// Towards plus infinity; 0 <= x <= 65504.
MPE_HD uint16_t half_up_positive(float x) {
  const uint16_t h = half_nearest(x);
  return static_cast<uint16_t>(half_to_float(h) < x ? h + 1u : h);
}

MPE_HD float bfloat_to_float(uint16_t b) { return bits_float(static_cast<uint32_t>(b) << 16); }

// x finite, |x| <= the largest BF16.
MPE_HD uint16_t bfloat_stochastic(float x, uint32_t r) {
  return static_cast<uint16_t>((float_bits(x) + r) >> 16);
}

MPE_HD uint16_t bfloat_nearest(float x) {
  const uint32_t u = float_bits(x);
  return static_cast<uint16_t>((u + 0x7FFFu + ((u >> 16) & 1u)) >> 16);
}

MPE_END

#endif
