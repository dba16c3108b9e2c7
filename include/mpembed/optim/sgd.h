// SGD: w -= lr * g.
#ifndef MPEMBED_OPTIM_SGD_H
#define MPEMBED_OPTIM_SGD_H

#include "mpembed/optim/common.h"

MPE_BEGIN

struct Sgd {
  static constexpr StateShape kState = kStateNone;

  static MPE_HD void step(const OptimizerSettings& o, float* __restrict w,
                          const float* __restrict g, float*, int64_t dim) {
    for (int64_t c = 0; c < dim; ++c) w[c] = fmaf(-o.lr, g[c], w[c]);
  }
};

MPE_END

#endif
