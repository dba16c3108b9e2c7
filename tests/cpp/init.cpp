// Initial values out of draws: their range, their symmetry and the logarithm behind them.
#include "mpembed/init.h"

#include <cmath>

#include "check.h"
#include "mpembed/error.h"

using namespace mpembed;

CASE(init_uniform_stays_in_its_range) {
  CHECK(uniform_value(0, -0.5f, 0.5f) == -0.5f);
  const float last = uniform_value((1u << 24) - 1, -0.5f, 0.5f);
  CHECK(last < 0.5f && last > 0.4999f);
  CHECK(uniform_value(123, 2.0f, 2.0f) == 2.0f);
}

CASE(init_normal_is_symmetric_and_has_its_quantiles) {
  const uint32_t all = (1u << 24) - 1;
  for (uint32_t draw : {0u, 1u, 99u, 1u << 20, 1u << 23}) {
    CHECK(normal_value(draw, 1.0f) == -normal_value(all - draw, 1.0f));
  }
  const auto at = [](double p) { return static_cast<uint32_t>(p * 16777216.0); };
  CHECK(std::fabs(normal_value(at(0.975), 1.0f) - 1.959964f) < 1e-4f);
  CHECK(std::fabs(normal_value(at(0.841344746), 2.0f) - 2.0f) < 1e-4f);
  CHECK(std::isfinite(normal_value(0, 1.0f)) && std::isfinite(normal_value(all, 1.0f)));
}

CASE(init_portable_log) {
  for (float u : {1.1754944e-38f, 1e-7f, 0.1f, 0.70710678f, 1.0f, 3.5f}) {
    const double exact = std::log(static_cast<double>(u));
    CHECK(std::fabs(portable_log(u) - exact) <= 1e-6 * (1.0 + std::fabs(exact)));
  }
}

CASE(error_the_smallest_position_wins_and_counts_add_up) {
  const mpe_error none = MPE_NO_ERROR, late{MPE_ERR_INDEX, 1, 9, -1, 2},
                  early{MPE_ERR_INDEX, 2, 4, 77, 3}, offsets{MPE_ERR_OFFSETS, 0, 6, 5, 1};
  const mpe_error two[3] = {none, late, early}, all[3] = {late, offsets, early};
  CHECK(first_error(&none, 1).status == MPE_OK);
  CHECK(first_error(two, 3).position == 4 && first_error(two, 3).table == 2);
  CHECK(first_error(two, 3).count == 5);
  CHECK(first_error(all, 3).status == MPE_ERR_OFFSETS);
}
