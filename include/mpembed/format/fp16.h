// fp16: IEEE binary16.
#ifndef MPEMBED_FORMAT_FP16_H
#define MPEMBED_FORMAT_FP16_H

#include "mpembed/format/plain.h"

MPE_BEGIN

struct ConvertFp16 {
  static constexpr bool kExact = false;
  static constexpr uint32_t kMaxAbsBits = 0x477FE000u;                 // 65504
  static constexpr uint32_t kMantissaBits = 10, kLeastExponent = 113;  // of a step, as a float's
  template <class K>
  static MPE_HD auto widen(K code) {
    return half_value(code);
  }
  // Of any value; only the low 16 bits count.
  template <class X>
  static MPE_HD auto code_of_any(X x) {
    return half_code_of_any(x);
  }
  static MPE_HD uint16_t nearest(float x) { return half_nearest(x); }
  static MPE_HD uint16_t stochastic(float x, uint32_t r) { return half_stochastic(x, r); }
};

struct Fp16 : Plain<uint16_t, ConvertFp16> {};

MPE_END

#endif
