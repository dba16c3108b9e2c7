// What arithmetic is written with that runs on one value or on a vector of them: here the functions
// on one value. A vector type brings its own, found by their argument's namespace.
#ifndef MPEMBED_LANES_H
#define MPEMBED_LANES_H

#include "mpembed/macros.h"

MPE_BEGIN

MPE_HD int32_t int_bits(float x) { return static_cast<int32_t>(float_bits(x)); }
MPE_HD float bits_value(int32_t bits) { return bits_float(static_cast<uint32_t>(bits)); }
MPE_HD int32_t to_int(float x) { return static_cast<int32_t>(x); }
MPE_HD float to_float(int32_t k) { return static_cast<float>(k); }
MPE_HD float root(float x) { return sqrtf(x); }
MPE_HD float fused(float a, float b, float c) { return fmaf(a, b, c); }
// a * b + c with one rounding or two, as is quicker: for what only has to be near.
MPE_HD float about(float a, float b, float c) {
#if defined(__CUDA_ARCH__)
  return fmaf(a, b, c);
#else
  return a * b + c;
#endif
}
MPE_HD float select(bool chosen, float a, float b) { return chosen ? a : b; }
MPE_HD int32_t select(bool chosen, int32_t a, int32_t b) { return chosen ? a : b; }
MPE_HD float smaller(float a, float b) { return a < b ? a : b; }
MPE_HD float larger(float a, float b) { return a > b ? a : b; }
MPE_HD int32_t larger(int32_t a, int32_t b) { return a > b ? a : b; }
MPE_HD bool any(bool x) { return x; }
MPE_HD int32_t clamp(int32_t k, int32_t low, int32_t high) {
  k = k < low ? low : k;
  return k > high ? high : k;
}

// Round to nearest even for |x| < 2^22, by the adder: a value or a vector of them.
template <class X>
MPE_HD auto rn_to_int(X x) {
  return int_bits(x + 12582912.0f) - 0x4B400000;
}

MPE_END

#endif
