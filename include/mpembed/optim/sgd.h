// SGD: w -= lr * g.
#ifndef MPEMBED_OPTIM_SGD_H
#define MPEMBED_OPTIM_SGD_H

#include "mpembed/optim/common.h"

MPE_BEGIN

struct Sgd {
  static constexpr StateShape kState = kStateNone;

  template <class X>
  static MPE_HD void apply(const OptimizerSettings& o, X& w, X g, X&) {
    w = fused(X(-o.lr), g, w);
  }

  static MPE_HD void step(const OptimizerSettings& o, float* __restrict w,
                          const float* __restrict g, float*, int64_t dim) {
    float none = 0.0f;
    for (int64_t c = 0; c < dim; ++c) apply(o, w[c], g[c], none);
  }
};

MPE_END

#endif
