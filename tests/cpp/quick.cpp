// The quick way to a code of an integer format: as near to the definition as affine.h says, so that
// it gives the same code wherever no draw comes near to another one.
#include <cmath>
#include <random>
#include <vector>

#include "check.h"
#include "mpembed/registry_types.h"

using namespace mpembed;

template <class Check>
static void each_integer_format(Check check) {
  for (int32_t id = 0; id < MPE_NUM_FORMATS; ++id) {
    with_format(id, [&](auto f) {
      if constexpr (decltype(f)::kHeaderBytes > 0) check(decltype(f){});
    });
  }
}

// A row's header, and the codes of values under it. `mirror`: that of the negative row.
template <class F>
struct Row {
  AffineHeader header;
  float inverse;
  bool quick;

  Row(float low, float high, bool mirror)
      : header(mirror ? mirrored(F::fit(-high, -low)) : F::fit(low, high)),
        inverse(header.scale == 0.0f ? 0.0f : 1.0f / header.scale),
        quick(affine_is_quick(low, high, std::fabs(header.scale), bits_float(F::kRangeBits))) {}

  // Both in 2^-16 of a step, without a draw.
  int32_t by_definition(float x) const {
    const auto s = affine_split(x, header, inverse, F::kLevels);
    return 65536 * s.k + rn_to_int(s.p * 65536.0f);
  }
  int32_t by_one_product(float x) const {
    return affine_quick(x, header.bias, inverse) - kQuickError;
  }
  // Whether every draw gives the same code both ways, unless it is near.
  bool all_draws_agree(float x) const {
    const int32_t quick_sum = affine_quick(x, header.bias, inverse);
    bool agree = true;
    for (int32_t r = 0; r < 65536; ++r) {
      agree =
          agree && (affine_is_near(quick_sum + r) ||
                    (quick_sum + r) >> 16 == affine_stochastic(x, header, inverse, F::kLevels, r));
    }
    const int32_t nearest = quick_sum + kQuickNearest;
    return agree && (affine_is_near(nearest) ||
                     nearest >> 16 == affine_nearest(x, header, inverse, F::kLevels));
  }
};

// Values of a row between low and high: its ends, its codes and the middles between them, with
// their neighbours, and others.
template <class F>
static std::vector<float> values_of(const Row<F>& row, float low, float high, std::mt19937& rng) {
  std::uniform_real_distribution<float> part(0.0f, 1.0f);
  std::vector<float> found{low, high};
  for (int i = 0; i < 16; ++i) {
    const int32_t k = static_cast<int32_t>(rng() % F::kLevels);
    const float y0 = affine_value(k, row.header), y1 = affine_value(k + 1, row.header);
    for (float x : {y0, y0 + (y1 - y0) / 2, low + part(rng) * (high - low)}) {
      found.insert(found.end(), {std::nextafter(x, low), x, std::nextafter(x, high)});
    }
  }
  for (float& x : found) x = std::fmin(std::fmax(x, low), high);
  return found;
}

// Widths and places of rows: every magnitude of the header's type, up to kQuickReach steps from
// zero.
template <class F, class Visit>
static int each_row(std::mt19937& rng, Visit visit) {
  constexpr bool kHalf = F::kHeaderBytes == 4;
  const int least = kHalf ? -20 : -90, most = kHalf ? 15 : 125;
  std::uniform_real_distribution<float> mantissa(1.0f, 2.0f), part(-1.0f, 1.0f);
  int quick = 0;
  for (int e = least; e < most; ++e) {
    for (int i = 0; i < 6; ++i) {
      const float limit = bits_float(F::kRangeBits);
      const float width = std::fmin(std::ldexp(mantissa(rng), e), limit);
      const float steps = kQuickReach * part(rng), low = width / F::kLevels * steps;
      const float high = low + width;
      if (std::fabs(low) > limit || std::fabs(high) > limit) continue;
      const Row<F> row(low, high, i % 2 == 1);
      if (!row.quick) continue;
      ++quick;
      visit(row, low, high);
    }
  }
  return quick;
}

CASE(quick_codes_lie_within_13_of_the_definition) {
  each_integer_format([](auto f) {
    using F = decltype(f);
    std::mt19937 rng(1);
    int32_t worst = 0;
    const int rows = each_row<F>(rng, [&](const Row<F>& row, float low, float high) {
      for (float x : values_of(row, low, high, rng)) {
        const int32_t error = row.by_one_product(x) - row.by_definition(x);
        worst = error > worst ? error : -error > worst ? -error : worst;
      }
    });
    CHECK(rows >= 50);
    CHECK(worst > 0 && worst <= 13);
  });
}

CASE(quick_codes_of_every_half_value) {
  each_integer_format([](auto f) {
    using F = decltype(f);
    for (float high : {65504.0f, 1000.0f, 1.0f, 0x1p-12f}) {
      for (float low : {-high, 0.0f, 0.8f * high}) {
        const Row<F> row(low, high, low == 0.0f);
        CHECK(row.quick);
        int32_t worst = 0;
        for (uint32_t h = 0; h < 0x10000; ++h) {
          const float x = half_to_float(static_cast<uint16_t>(h));
          if (!(x >= low && x <= high)) continue;
          const int32_t error = row.by_one_product(x) - row.by_definition(x);
          worst = error > worst ? error : -error > worst ? -error : worst;
        }
        CHECK(worst <= 13);
      }
    }
  });
}

// In steps a little above a power of two, up to kQuickReach from zero: there floats lie furthest
// apart, and the two ways differ most.
CASE(quick_codes_of_every_draw) {
  each_integer_format([](auto f) {
    using F = decltype(f);
    const float step = 1.01f, width = step * F::kLevels, far = 0.9999f * kQuickReach * step;
    std::mt19937 rng(2);
    for (float high : {0.5f * width, far, width - far}) {
      for (bool mirror : {false, true}) {
        const float low = high - width;
        const Row<F> row(low, high, mirror);
        CHECK(row.quick);
        std::vector<float> x = values_of(row, low, high, rng);
        x.resize(10);
        for (int i = 0; i < 20; ++i) {
          const float inside = std::fmod(0.37f * static_cast<float>(i), width);
          x.push_back(high > 0.0f ? high - inside : low + inside);
        }
        for (float one : x) CHECK(row.all_draws_agree(one));
      }
    }
  });
}

// What the bounds of affine_is_quick leave out: rows far from zero, beyond the range, subnormal.
CASE(quick_codes_are_not_for_every_row) {
  CHECK(!Row<Int8>(1000.0f, 1000.5f, false).quick);
  CHECK(!Row<Int8>(-0x1.02p126f, 0x1p126f, false).quick);
  CHECK(!Row<Int8>(0.0f, 0x1p-110f, false).quick);
  CHECK(!Row<Int4>(-66000.0f, 0.0f, false).quick);
  CHECK(!Row<Int4>(-66000.0f, 0.0f, true).quick);
  CHECK(!Row<Int2>(7.0f, 7.0f, false).quick);
}
