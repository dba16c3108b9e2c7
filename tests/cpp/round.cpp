// FP16 and BF16: every code survives, nearest is nearest, and stochastic rounding is unbiased.
#include "mpembed/round.h"

#include "check.h"

using namespace mpembed;

static bool finite_half(uint32_t h) { return (h & 0x7C00) != 0x7C00; }

CASE(half_every_finite_code_survives) {
  for (uint32_t h = 0; h < 0x10000; ++h) {
    if (!finite_half(h)) continue;
    const float x = half_to_float(static_cast<uint16_t>(h));
    CHECK(half_nearest(x) == h);
    CHECK(half_stochastic(x, 0) == h && half_stochastic(x, 0xFFFF) == h);
  }
}

CASE(half_values) {
  CHECK(half_to_float(0x3C00) == 1.0f && half_to_float(0xC000) == -2.0f);
  CHECK(half_to_float(0x7BFF) == 65504.0f);
  CHECK(half_to_float(0x0001) == 5.9604644775390625e-08f);
  CHECK(half_to_float(0x7C00) > 3e38f && half_to_float(0x7E00) != half_to_float(0x7E00));
}

CASE(half_nearest_takes_the_even_one_of_a_tie) {
  const float step = half_to_float(0x3C01) - 1.0f;
  CHECK(half_nearest(1.0f + 0.5f * step) == 0x3C00);
  CHECK(half_nearest(1.0f + 1.5f * step) == 0x3C02);
  CHECK(half_nearest(1.0f + 0.501f * step) == 0x3C01);
  CHECK(half_nearest(half_to_float(0x0001) * 0.5f) == 0x0000);
  CHECK(half_nearest(half_to_float(0x0001) * 1.5f) == 0x0002);
}

CASE(half_directed) {
  for (uint32_t h = 0x0001; h < 0x7BFF; h += 37) {
    const float low = half_to_float(static_cast<uint16_t>(h));
    const float high = half_to_float(static_cast<uint16_t>(h + 1));
    const float x = low + 0.25f * (high - low);
    CHECK(half_code_down(x) == static_cast<int32_t>(h));
    CHECK(half_code_up(x) == static_cast<int32_t>(h + 1));
    CHECK(half_code_down(-x) == static_cast<int32_t>(0x8000 | (h + 1)));
  }
}

// Over all 2^16 draws the mean is the value, to within 2^-16 of a step: subnormals too.
template <class Round, class Value>
static bool unbiased(float x, float step, Round round, Value value) {
  double sum = 0.0;
  for (uint32_t r = 0; r < 0x10000; ++r) sum += value(round(x, r));
  const double error = sum / 65536.0 - x;
  return error < step / 65536.0 && -error < step / 65536.0;
}

CASE(half_stochastic_is_unbiased) {
  const auto value = [](uint16_t h) { return half_to_float(h); };
  for (uint32_t h : {0x0000u, 0x0001u, 0x03FEu, 0x0400u, 0x3C00u, 0x7BFDu}) {
    const float low = half_to_float(static_cast<uint16_t>(h));
    const float step = half_to_float(static_cast<uint16_t>(h + 1)) - low;
    for (float part : {0.0f, 0.1f, 0.5f, 0.9f}) {
      CHECK(unbiased(low + part * step, step, half_stochastic, value));
      CHECK(unbiased(-low - part * step, step, half_stochastic, value));
    }
  }
}

CASE(bfloat_rounds) {
  const auto value = [](uint16_t b) { return bfloat_value(static_cast<int32_t>(b)); };
  for (float x : {1.0f, 1.003f, -2.71828f, 1e-40f, 3e38f}) {
    const uint16_t down = static_cast<uint16_t>(float_bits(x) >> 16);
    const float step = value(static_cast<uint16_t>(down + 1)) - value(down);
    CHECK(unbiased(x, step < 0 ? -step : step, bfloat_stochastic, value));
    const float error = value(bfloat_nearest(x)) - x;
    CHECK(2.0f * (error < 0 ? -error : error) <= (step < 0 ? -step : step));
  }
}
