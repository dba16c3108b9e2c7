// Rowwise Adagrad: h += mean(g^2); w -= lr / (sqrt(h) + eps) * g, h one value a row.
#ifndef MPEMBED_OPTIM_ROWWISE_ADAGRAD_H
#define MPEMBED_OPTIM_ROWWISE_ADAGRAD_H

#include "mpembed/optim/common.h"
#include "mpembed/reduce.h"

MPE_BEGIN

struct RowwiseAdagrad {
  static constexpr StateShape kState = kStateRow;

  // The step size once the mean square is known; a warp folds the tree itself and calls this.
  static MPE_HD float scale(const OptimizerSettings& o, float sum_of_squares, float* h,
                            int64_t dim) {
    h[0] += sum_of_squares / static_cast<float>(dim);
    return o.lr / (sqrtf(h[0]) + o.eps);
  }

  static MPE_HD void apply(float t, float* __restrict w, const float* __restrict g, int64_t dim) {
    for (int64_t c = 0; c < dim; ++c) w[c] = fmaf(-t, g[c], w[c]);
  }

  static MPE_HD void step(const OptimizerSettings& o, float* __restrict w,
                          const float* __restrict g, float* __restrict h, int64_t dim) {
    apply(scale(o, tree_dot(g, g, dim), h, dim), w, g, dim);
  }
};

MPE_END

#endif
