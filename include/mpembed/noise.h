// What the rounding of a row's write adds to the row, beside what its update changed: measured of a
// sample of the writes, in steps of the row (docs/numerics.md, section 7).
#ifndef MPEMBED_NOISE_H
#define MPEMBED_NOISE_H

#include "mpembed/contract.h"
#include "mpembed/format/affine.h"
#include "mpembed/format/plain.h"

MPE_BEGIN

// Whether the write of a row at this step belongs to the sample. row: its number in the whole
// table.
MPE_HD bool noise_sampled(uint64_t table_id, uint64_t row, uint64_t step) {
  const uint64_t z =
      ((table_id << 48) + row) * 0x9E3779B97F4A7C15ull + step * 0xD1B54A32D192ED03ull;
  return z >> (64 - MPE_NOISE_SAMPLE_BITS) == 0;
}

// A square in steps, as integers that add up in any order to the same sum.
MPE_HD int64_t noise_units(float square) {
  const float most = static_cast<float>(MPE_NOISE_MAX);
  return static_cast<int64_t>((square < most ? square : most) *
                              static_cast<float>(INT64_C(1) << MPE_NOISE_FRACTION_BITS));
}

// What an update changed of a value. inverse: 1 / (the row's step).
MPE_HD int64_t update_units(float x, float old, float inverse) {
  const float steps = (x - old) * inverse;
  return noise_units(steps * steps);
}

// The expected square of the error of a value that lies p of a step above its lower neighbour.
MPE_HD float rounding_error(float p, bool stochastic) {
  const float other = 1.0f - p;
  const float nearer = smaller(p, other);
  return stochastic ? p * other : nearer * nearer;
}

// Measures the columns of a row that is written in this format; low and high: its range.
template <class Format, class Family = typename Format::Family>
class RowNoise;

template <class Format>
class RowNoise<Format, AffineFamily> {
 public:
  MPE_HD RowNoise(float low, float high)
      : header_(Format::fit(low, high)), inverse_(1.0f / header_.scale) {}

  // A constant row has no step.
  MPE_HD bool measurable() const { return header_.scale != 0.0f; }
  MPE_HD int64_t noise(float x, bool stochastic) const {
    const float p = affine_split(x, header_, inverse_, Format::kLevels).p;
    return noise_units(rounding_error(smaller(larger(p, 0.0f), 1.0f), stochastic));
  }
  MPE_HD int64_t update(float x, float old) const { return update_units(x, old, inverse_); }

 private:
  AffineHeader header_;
  float inverse_;
};

// A step of the row is that of its largest magnitude.
template <class Format>
class RowNoise<Format, PlainFamily> {
 public:
  MPE_HD RowNoise(float low, float high)
      : inverse_(inverse_of(exponent(larger(fabsf(low), fabsf(high))))) {}

  MPE_HD bool measurable() const { return true; }
  MPE_HD int64_t noise(float x, bool stochastic) const {
    const uint32_t e = exponent(x);
    const float y = fabsf(x) * inverse_of(e);
    const float p = y - static_cast<float>(static_cast<int32_t>(y));
    const float step = bits_float((e - kMantissa) << 23) * inverse_;
    return noise_units(rounding_error(p, stochastic) * (step * step));
  }
  MPE_HD int64_t update(float x, float old) const { return update_units(x, old, inverse_); }

 private:
  static constexpr uint32_t kMantissa = Format::Convert::kMantissaBits;
  static constexpr uint32_t kLeast = Format::Convert::kLeastExponent;

  static MPE_HD uint32_t exponent(float x) {
    const uint32_t e = (float_bits(x) & 0x7FFFFFFFu) >> 23;
    return e > kLeast ? e : kLeast;
  }
  // 1 / (the step at an exponent).
  static MPE_HD float inverse_of(uint32_t e) { return bits_float((254u + kMantissa - e) << 23); }

  float inverse_;
};

MPE_END

#endif
