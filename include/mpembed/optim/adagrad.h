// Adagrad: h += g^2; w -= lr / (1 + (t - 1) * lr_decay) * g / (sqrt(h) + eps), h one value an
// element, t the number of updates.
#ifndef MPEMBED_OPTIM_ADAGRAD_H
#define MPEMBED_OPTIM_ADAGRAD_H

#include "mpembed/optim/common.h"

MPE_BEGIN

struct Adagrad : OptimizerBase {
  static constexpr int kNumStates = 1;
  static constexpr State kStates[] = {{"sum", kStateElement, 0.0f}};
  static constexpr const char* kParameters[] = {"eps", "lr_decay", nullptr};
  enum : int { kEps = kOwnParameters, kLrDecay };
  enum : int { kRate = kOwnCoefficients, kEpsilon };

  static MPE_HD void coefficients(const double* p, int32_t mode, uint64_t t, float* c) {
    decay_coefficient(p, mode, c);
    c[kRate] = static_cast<float>(p[kLr] / (1.0 + static_cast<double>(t - 1) * p[kLrDecay]));
    c[kEpsilon] = static_cast<float>(p[kEps]);
  }

  template <class X>
  static MPE_HD void apply(const float* c, X, X& w, X& g, X* states) {
    states[0] = fused(g, g, states[0]);
    w = fused(X(-c[kRate]), g / (root(states[0]) + c[kEpsilon]), w);
  }
};

MPE_END

#endif
