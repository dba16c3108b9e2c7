// What the steps read instead of the parameters, late in a training too, and powers of any number.
#include <cfloat>
#include <cmath>
#include <vector>

#include "check.h"
#include "mpembed/registry_types.h"

using namespace mpembed;

namespace {

constexpr uint64_t kUpdates[] = {1, 2, 1000, 1000000};

// x is y, rounded to a float.
bool rounded(float x, double y) { return std::fabs(x - y) <= 0.6 * FLT_EPSILON * std::fabs(y); }

// 1 - beta^t without the cancellation.
double complement(double beta, uint64_t t) {
  return -std::expm1(static_cast<double>(t) * std::log(beta));
}

template <class Optimizer>
std::vector<float> coefficients(const std::vector<double>& p, int32_t decay, uint64_t t) {
  std::vector<float> c(MPE_MAX_COEFFICIENTS);
  Optimizer::coefficients(p.data(), decay, t, c.data());
  return c;
}

template <class Optimizer>
void adam() {
  for (const uint64_t t : kUpdates) {
    const std::vector<float> c =
        coefficients<Optimizer>({0.002, 0.0, 0.9, 0.999, 1e-8}, kDecayNone, t);
    CHECK(
        rounded(c[Optimizer::kRate], 0.002 * std::sqrt(complement(0.999, t)) / complement(0.9, t)));
    CHECK(rounded(c[Optimizer::kFirst], 0.1) && rounded(c[Optimizer::kSecond], 0.001));
    CHECK(rounded(c[Optimizer::kEpsilon], 1e-8));
  }
}

// The relative error of a power, which may be 0 where the exact one is below 2^-125.
double error_of_power(float x, float p) {
  const double exact = std::pow(static_cast<double>(x), static_cast<double>(p));
  const float y = power(x, p);
  if (y == 0.0f) return exact < std::ldexp(1.0, -125) ? 0.0 : 1.0;
  return std::fabs(y / exact - 1.0);
}

}  // namespace

CASE(coefficients_of_adam) { adam<Adam>(); }

CASE(coefficients_of_rowwise_adam) { adam<RowwiseAdam>(); }

CASE(coefficients_of_adam_without_memory) {  // betas of zero: each moment is the gradient's
  const std::vector<float> c = coefficients<Adam>({0.5, 0.0, 0.0, 0.0, 0.0}, kDecayNone, 1);
  CHECK(c[Adam::kRate] == 0.5f && c[Adam::kFirst] == 1.0f && c[Adam::kSecond] == 1.0f);
}

CASE(coefficients_of_lamb) {
  for (const uint64_t t : kUpdates) {
    const std::vector<double> p{0.002, 0.25, 0.9, 0.999, 1e-6};
    const std::vector<float> c = coefficients<Lamb>(p, kDecayDecoupled, t);
    CHECK(c[Lamb::kRate] == 0.002f && c[kDecay] == 0.25f && c[Lamb::kPull] == 0.25f);
    CHECK(rounded(c[Lamb::kFirstScale], 1.0 / complement(0.9, t)));
    CHECK(rounded(c[Lamb::kSecondScale], 1.0 / std::sqrt(complement(0.999, t))));
    CHECK(coefficients<Lamb>(p, kDecayL2, t)[Lamb::kPull] == 0.0f);
  }
}

CASE(coefficients_of_adagrad_whose_rate_decays) {
  for (const uint64_t t : kUpdates) {
    const std::vector<float> c = coefficients<Adagrad>({0.3, 0.0, 1e-10, 0.01}, kDecayNone, t);
    CHECK(rounded(c[Adagrad::kRate], 0.3 / (1.0 + static_cast<double>(t - 1) * 0.01)));
    CHECK(c[Adagrad::kEpsilon] == 1e-10f);
  }
}

CASE(coefficients_that_the_count_does_not_change) {
  for (const uint64_t t : kUpdates) {
    CHECK(coefficients<Sgd>({0.1, 0.0}, kDecayNone, t)[Sgd::kRate] == 0.1f);
    const std::vector<float> b = coefficients<SgdMomentum>({0.1, 0.0, 0.7}, kDecayNone, t);
    CHECK(b[SgdMomentum::kRate] == 0.1f && b[SgdMomentum::kKept] == 0.7f);
    const std::vector<float> h = coefficients<RowwiseAdagrad>({0.1, 0.0, 1e-8}, kDecayNone, t);
    CHECK(h[RowwiseAdagrad::kRate] == 0.1f && h[RowwiseAdagrad::kEpsilon] == 1e-8f);
    const std::vector<double> p{0.1, 0.0, -0.7, 0.2, 0.3, 0.4};
    const std::vector<float> f = coefficients<Ftrl>(p, kDecayNone, t);
    CHECK(f[Ftrl::kRate] == 0.1f && f[Ftrl::kPower] == 0.7f && f[Ftrl::kSparse] == 0.2f);
    CHECK(f[Ftrl::kRidge] == 0.3f && f[Ftrl::kStart] == 0.4f);
  }
}

CASE(coefficients_of_decay) {
  const std::vector<double> p{0.1, 0.3};
  CHECK(coefficients<Sgd>(p, kDecayL2, 1)[kDecay] == 0.3f);
  CHECK(coefficients<Sgd>(p, kDecayDecoupled, 1)[kDecay] == -(0.1f * 0.3f));
}

CASE(power_of_the_number_of_updates) {
  CHECK(power_of(0.9, 0) == 1.0 && power_of(0.9, 1) == 0.9 && power_of(0.0, 5) == 0.0);
  CHECK(power_of(0.5, 1000) == std::ldexp(1.0, -1000));
  for (const uint64_t t : kUpdates) {
    const double exact = std::pow(0.99999, static_cast<double>(t));
    CHECK(std::fabs(power_of(0.99999, t) / exact - 1.0) < 1e-9);
  }
  CHECK(power_of(0.9, UINT64_MAX) == 0.0);
}

CASE(power_is_near_the_exact_one) {
  for (const float p : {0.01f, 0.25f, 0.49f, 0.7f, 0.99f, 1.0f}) {
    double worst = 0.0;
    for (float x = FLT_TRUE_MIN; x < FLT_MAX / 2.0f; x = std::nextafter(x * 1.0101f, FLT_MAX)) {
      worst = std::fmax(worst, error_of_power(x, p));
    }
    CHECK(worst < 3e-7);
    CHECK(error_of_power(FLT_MAX, p) < 2e-5);
  }
}

CASE(power_of_a_half_is_the_root) {
  for (const float x : {0.0f, 1e-44f, 2.0f, 1e38f}) CHECK(power(x, 0.5f) == std::sqrt(x));
}

CASE(power_of_zero_and_to_the_zero) {
  CHECK(power(0.0f, 0.0f) == 1.0f && power(123.0f, 0.0f) == 1.0f);
  for (const float p : {0.25f, 0.5f, 1.0f}) CHECK(float_bits(power(0.0f, p)) == 0);
  for (const float p : {0.25f, 0.7f, 1.0f}) CHECK(power(1.0f, p) == 1.0f);
}
