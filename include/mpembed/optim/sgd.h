// SGD: w -= lr * g.
#ifndef MPEMBED_OPTIM_SGD_H
#define MPEMBED_OPTIM_SGD_H

#include "mpembed/optim/common.h"

MPE_BEGIN

struct Sgd : OptimizerBase {
  static constexpr const char* kParameters[] = {nullptr};
  enum : int { kRate = kOwnCoefficients };

  static MPE_HD void coefficients(const double* p, int32_t mode, uint64_t, float* c) {
    decay_coefficient(p, mode, c);
    c[kRate] = static_cast<float>(p[kLr]);
  }

  template <class X>
  static MPE_HD void apply(const float* c, X, X& w, X& g, X*) {
    w = fused(X(-c[kRate]), g, w);
  }
};

MPE_END

#endif
