// fp32: the value itself.
#ifndef MPEMBED_FORMAT_FP32_H
#define MPEMBED_FORMAT_FP32_H

#include "mpembed/format/plain.h"

MPE_BEGIN

struct ConvertFp32 {
  static constexpr bool kExact = true;
  static constexpr uint32_t kMaxAbsBits = 0x7F7FFFFFu;
  template <class X>
  static MPE_HD X widen(X v) {
    return v;
  }
  static MPE_HD float nearest(float x) { return x; }
  static MPE_HD float stochastic(float x, uint32_t) { return x; }
};

struct Fp32 : Plain<float, ConvertFp32> {};

MPE_END

#endif
