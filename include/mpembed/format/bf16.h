// bf16: the upper half of binary32.
#ifndef MPEMBED_FORMAT_BF16_H
#define MPEMBED_FORMAT_BF16_H

#include "mpembed/format/plain.h"

MPE_BEGIN

struct ConvertBf16 {
  static constexpr bool kExact = false;
  static constexpr uint32_t kMaxAbsBits = 0x7F7F0000u;
  static constexpr uint32_t kMantissaBits = 7, kLeastExponent = 8;  // below, steps count as these
  template <class K>
  static MPE_HD auto widen(K code) {
    return bfloat_value(code);
  }
  // Of any value; only the low 16 bits count.
  template <class X>
  static MPE_HD auto code_of_any(X x) {
    return bfloat_code_of_any(x);
  }
  static MPE_HD uint16_t nearest(float x) { return bfloat_nearest(x); }
  static MPE_HD uint16_t stochastic(float x, uint32_t r) { return bfloat_stochastic(x, r); }
};

struct Bf16 : Plain<uint16_t, ConvertBf16> {};

MPE_END

#endif
