// SGD with momentum: b = momentum * b + g; w -= lr * b, b one value an element.
#ifndef MPEMBED_OPTIM_SGD_MOMENTUM_H
#define MPEMBED_OPTIM_SGD_MOMENTUM_H

#include "mpembed/optim/common.h"

MPE_BEGIN

struct SgdMomentum : OptimizerBase {
  static constexpr int kNumStates = 1;
  static constexpr State kStates[] = {{"momentum", kStateElement, 0.0f}};
  static constexpr const char* kParameters[] = {"momentum", nullptr};
  enum : int { kMomentum = kOwnParameters };
  enum : int { kRate = kOwnCoefficients, kKept };

  static MPE_HD void coefficients(const double* p, int32_t mode, uint64_t, float* c) {
    decay_coefficient(p, mode, c);
    c[kRate] = static_cast<float>(p[kLr]);
    c[kKept] = static_cast<float>(p[kMomentum]);
  }

  template <class X>
  static MPE_HD void apply(const float* c, X, X& w, X& g, X* states) {
    states[0] = fused(X(c[kKept]), states[0], g);
    w = fused(X(-c[kRate]), states[0], w);
  }
};

MPE_END

#endif
