// Rows of every format: sizes, ranges that cover the row, constant rows, pad bits, unbiased codes.
#include <cmath>
#include <vector>

#include "check.h"
#include "mpembed/api.h"
#include "mpembed/registry_types.h"

using namespace mpembed;

template <class F>
static std::vector<uint8_t> encoded(const std::vector<float>& x, const uint16_t* draws) {
  const int64_t dim = static_cast<int64_t>(x.size());
  std::vector<uint8_t> row(static_cast<size_t>(F::row_bytes(dim)), uint8_t{0xA5});
  F::encode(x.data(), dim, row.data(), draws);
  return row;
}

template <class F>
static std::vector<float> decoded(const std::vector<uint8_t>& row, int64_t dim) {
  std::vector<float> x(static_cast<size_t>(dim));
  F::for_each(row.data(), dim, [&](int64_t c, float v) { x[static_cast<size_t>(c)] = v; });
  return x;
}

template <class Check>
static void each_format(Check check) {
  for (int32_t id = 0; id < MPE_NUM_FORMATS; ++id) {
    with_format(id, [&](auto f) { check(decltype(f){}); });
  }
}

CASE(format_sizes) {
  CHECK(Fp32::row_bytes(7) == 28 && Fp16::row_bytes(7) == 14 && Bf16::row_bytes(7) == 14);
  CHECK(Int8::row_bytes(7) == 15 && Int8Fp16::row_bytes(7) == 11);
  CHECK(Int4::row_bytes(7) == 8 && Int2::row_bytes(7) == 6);
  CHECK(Int6::row_bytes(7) == 10 && Int5::row_bytes(7) == 9);
}

CASE(format_a_constant_row_decodes_to_itself) {
  each_format([](auto f) {
    using F = decltype(f);
    const std::vector<float> x(9, -0.75f);
    CHECK(decoded<F>(encoded<F>(x, nullptr), 9) == x);
  });
}

CASE(format_a_row_comes_back_to_within_a_step) {
  std::vector<float> x;
  for (int i = 0; i < 33; ++i) x.push_back(std::sin(static_cast<float>(i)));
  each_format([&](auto f) {
    using F = decltype(f);
    const float step = F::kBitsPerCode < 16 ? 2.02f / ((1 << F::kBitsPerCode) - 1) : 0.01f;
    const std::vector<float> y = decoded<F>(encoded<F>(x, nullptr), 33);
    for (size_t i = 0; i < x.size(); ++i) CHECK(std::fabs(x[i] - y[i]) <= 0.51f * step);
  });
}

// The stored range covers the row: its ends are reached, nothing is clipped.
CASE(format_integer_ranges_cover_the_row) {
  for (float scale : {1.0f, 1e-5f, 3e4f}) {
    const std::vector<float> x{-0.3f * scale, 0.1f * scale, 0.77f * scale};
    each_format([&](auto f) {
      using F = decltype(f);
      if constexpr (F::kHeaderBytes > 0) {
        const std::vector<uint8_t> row = encoded<F>(x, nullptr);
        const AffineHeader h = F::header(row.data(), 3);
        CHECK(h.bias <= x[0] && affine_value(F::kLevels, h) >= x[2]);
      }
    });
  }
}

CASE(format_layout_and_pad_bits) {
  const std::vector<float> x{0.0f, 15.0f, 5.0f};
  const std::vector<uint8_t> row = encoded<Int4>(x, nullptr);
  CHECK(row[0] == 0xF0 && row[1] == 0x05);  // low nibble first, the last one zero
  const AffineHeader h = Int4::header(row.data(), 3);
  CHECK(h.scale == 1.0f && h.bias == 0.0f);
}

// Every width, registered or not: code c takes its bits in order, and comes back by both readers.
template <int kBits>
static void check_width() {
  using F = Affine<kBits, HeaderFp16>;
  for (size_t dim = 2; dim <= 25; ++dim) {
    std::vector<float> x(dim);
    for (size_t c = 0; c < dim; ++c) x[c] = static_cast<float>((c * 11 + 1) % (F::kLevels + 1u));
    x[0] = 0.0f;
    x[dim - 1] = static_cast<float>(F::kLevels);
    const std::vector<uint8_t> row = encoded<F>(x, nullptr);
    const int64_t columns = static_cast<int64_t>(dim);
    CHECK(static_cast<int64_t>(row.size()) == (columns * kBits + 7) / 8 + 4);
    CHECK(decoded<F>(row, columns) == x);
    for (size_t c = 0; c < dim; ++c) {
      CHECK(F::value(row.data(), F::header(row.data(), columns), static_cast<int64_t>(c)) == x[c]);
    }
    for (size_t bit = 0; bit < 8 * (row.size() - 4); ++bit) {
      const size_t c = bit / kBits;
      const uint32_t code = c < dim ? static_cast<uint32_t>(x[c]) : 0;
      CHECK((row[bit / 8] >> bit % 8 & 1u) == (code >> bit % kBits & 1u));
    }
  }
}

CASE(format_codes_of_every_width_lie_one_after_the_other) {
  check_width<2>();
  check_width<3>();
  check_width<4>();
  check_width<5>();
  check_width<6>();
  check_width<7>();
  check_width<8>();
}

CASE(format_stochastic_codes_are_unbiased) {
  const std::vector<float> x{0.0f, 0.2f, 0.55f, 1.0f};
  std::vector<double> sum(4, 0.0);
  for (uint32_t r = 0; r < 0x10000; r += 16) {
    const std::vector<uint16_t> draws(4, static_cast<uint16_t>(r));
    const std::vector<float> y = decoded<Int4>(encoded<Int4>(x, draws.data()), 4);
    for (size_t i = 0; i < 4; ++i) sum[i] += y[i];
  }
  for (size_t i = 0; i < 4; ++i) CHECK(std::fabs(sum[i] / 4096.0 - x[i]) < 1e-4);
}
