// x^p for x >= 0 and 0 <= p <= 1, with the same bits everywhere (docs/numerics.md, section 5); 0
// where it is below 2^-125.5.
#ifndef MPEMBED_OPTIM_POWER_H
#define MPEMBED_OPTIM_POWER_H

#include "mpembed/lanes.h"
#include "mpembed/macros.h"

MPE_BEGIN

// The base-2 logarithm as a whole number and a rest within +-0.5. X: a value or a vector of them.
template <class X, class K>
struct Log2 {
  K whole;
  X rest;
};

// x: positive and finite.
template <class X>
MPE_HD auto log2_of(X x) {
  constexpr int32_t kRootHalf = 0x3F3504F3;  // sqrt(1/2)
  const auto tiny = x < 1.17549435e-38f;
  const auto bits = int_bits(select(tiny, x * 16777216.0f, x));
  const auto above = bits - kRootHalf;
  const auto e = above >> 23;
  const X m = bits_value(bits - (above & ~0x7FFFFF));
  const X t = (m - 1.0f) / (m + 1.0f), square = t * t;
  X series = fused(square, X(1.0f / 11.0f), X(1.0f / 9.0f));
  series = fused(series, square, X(1.0f / 7.0f));
  series = fused(series, square, X(1.0f / 5.0f));
  series = fused(series, square, X(1.0f / 3.0f));
  series = fused(series, square, X(1.0f));
  const X rest = (t + t) * series * 1.44269504f;
  return Log2<X, decltype(int_bits(x))>{select(tiny, e - 24, e), rest};
}

template <class X>
MPE_HD X power(X x, float p) {
  if (p == 0.5f) return root(x);
  if (p == 0.0f) return X(1.0f);
  const auto log = log2_of(x);
  const X whole = to_float(log.whole);
  const auto k = clamp(rn_to_int(fused(X(p), whole, log.rest * p)), -126, 127);
  // Of p * log2(x) the whole number k and the rest.
  const X f = fused(log.rest, X(p), fused(X(p), whole, -to_float(k)));
  X y = fused(f, X(1.54035304e-4f), X(1.33335581e-3f));
  y = fused(y, f, X(9.61812911e-3f));
  y = fused(y, f, X(5.55041087e-2f));
  y = fused(y, f, X(2.40226507e-1f));
  y = fused(y, f, X(6.93147181e-1f));
  y = fused(y, f, X(1.0f));
  // Times 2^k, which is exact; below, the exponent has no room for it.
  y = select(k > -126, y * bits_value((k + 127) << 23), X(0.0f));
  return select(x > 0.0f, y, X(0.0f));
}

MPE_END

#endif
