// Adagrad: h += g^2; w -= lr * g / (sqrt(h) + eps), h one value an element.
#ifndef MPEMBED_OPTIM_ADAGRAD_H
#define MPEMBED_OPTIM_ADAGRAD_H

#include "mpembed/optim/common.h"

MPE_BEGIN

struct Adagrad {
  static constexpr StateShape kState = kStateElement;

  template <class X>
  static MPE_HD void apply(const OptimizerSettings& o, X& w, X g, X& h) {
    h = fused(g, g, h);
    w = fused(X(-o.lr), g / (root(h) + o.eps), w);
  }

  static MPE_HD void step(const OptimizerSettings& o, float* __restrict w,
                          const float* __restrict g, float* __restrict h, int64_t dim) {
    for (int64_t c = 0; c < dim; ++c) apply(o, w[c], g[c], h[c]);
  }
};

MPE_END

#endif
