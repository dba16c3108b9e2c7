// Lion (Chen et al., 2023): w -= lr * sign(beta1 * m + (1 - beta1) * g);
// m = beta2 * m + (1 - beta2) * g, m one value an element.
#include "mpembed/optim/common.h"

MPE_BEGIN

struct Lion : OptimizerBase {
  static constexpr int kNumStates = 1;
  static constexpr State kStates[] = {{"exp_avg", kStateElement, 0.0f}};
  static constexpr const char* kParameters[] = {"beta1", "beta2", nullptr};
  enum : int { kBeta1 = kOwnParameters, kBeta2 };
  enum : int { kRate = kOwnCoefficients, kFirst, kSecond };

  static MPE_HD void coefficients(const double* p, int32_t mode, uint64_t, float* c) {
    decay_coefficient(p, mode, c);
    c[kRate] = static_cast<float>(p[kLr]);
    c[kFirst] = static_cast<float>(1.0 - p[kBeta1]);
    c[kSecond] = static_cast<float>(1.0 - p[kBeta2]);
  }

  // X: a value or a vector of them, so that conditions are written with select().
  template <class X>
  static MPE_HD void apply(const float* c, X, X& w, X& g, X* states) {
    const X change = g - states[0];
    const X mixed = fused(X(c[kFirst]), change, states[0]);
    w = w - select(mixed > 0.0f, X(c[kRate]), select(mixed < 0.0f, X(-c[kRate]), X(0.0f)));
    states[0] = fused(X(c[kSecond]), change, states[0]);
  }
};

MPE_END
