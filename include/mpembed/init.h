// Initial values of a row from 24-bit draws (docs/numerics.md, section 3).
#ifndef MPEMBED_INIT_H
#define MPEMBED_INIT_H

#include "mpembed/macros.h"
#include "mpembed/philox.h"

MPE_BEGIN

MPE_HD float uniform_value(uint32_t draw24, float lo, float hi) {
  return fmaf(static_cast<float>(draw24) * 5.9604644775390625e-08f, hi - lo, lo);
}

MPE_HD float horner(float x, const float* coefficients, int n) {
  float p = coefficients[0];
  for (int i = 1; i < n; ++i) p = fmaf(p, x, coefficients[i]);
  return p;
}

// Natural logarithm of a positive normal float; the same bits everywhere, which libm's is not.
MPE_HD float portable_log(float u) {
  const float kSeries[5] = {1.0f / 9.0f, 1.0f / 7.0f, 1.0f / 5.0f, 1.0f / 3.0f, 1.0f};
  int32_t e = static_cast<int32_t>(float_bits(u) >> 23) - 127;
  float m = bits_float((float_bits(u) & 0x007FFFFFu) | 0x3F800000u);
  if (m > 1.41421356f) {
    m *= 0.5f;
    e += 1;
  }
  const float t = (m - 1.0f) / (m + 1.0f);
  const float q = horner(t * t, kSeries, 5);
  return fmaf(static_cast<float>(e), 0.69314718f, (t + t) * q);
}

// Standard normal from a 24-bit draw through the inverse error function (M. Giles, 2012).
MPE_HD float normal_value(uint32_t draw24, float std) {
  const float kCentral[9] = {2.81022636e-08f,  3.43273939e-07f, -3.5233877e-06f,
                             -4.39150654e-06f, 0.00021858087f,  -0.00125372503f,
                             -0.00417768164f,  0.246640727f,    1.50140941f};
  const float kTail[9] = {-0.000200214257f, 0.000100950558f, 0.00134934322f,
                          -0.00367342844f,  0.00573950773f,  -0.0076224613f,
                          0.00943887047f,   1.00167406f,     2.83297682f};
  const int32_t numerator = static_cast<int32_t>(2u * draw24 + 1u) - (1 << 24);
  const float v = static_cast<float>(numerator) * 5.9604644775390625e-08f;
  const float w = -portable_log((1.0f - v) * (1.0f + v));
  const float p = w < 5.0f ? horner(w - 2.5f, kCentral, 9) : horner(sqrtf(w) - 3.0f, kTail, 9);
  return std * (1.41421356f * (p * v));
}

MPE_END

#endif
