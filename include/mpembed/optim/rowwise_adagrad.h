// Rowwise Adagrad: h += mean(g^2); w -= lr / (sqrt(h) + eps) * g, h one value a row.
#ifndef MPEMBED_OPTIM_ROWWISE_ADAGRAD_H
#define MPEMBED_OPTIM_ROWWISE_ADAGRAD_H

#include "mpembed/optim/common.h"
#include "mpembed/reduce.h"

MPE_BEGIN

struct RowwiseAdagrad {
  static constexpr StateShape kState = kStateRow;

  // The step size once the sum of squares is known. X: one row, or several.
  template <class X>
  static MPE_HD X scale(const OptimizerSettings& o, X sum_of_squares, X* h, int64_t dim) {
    *h = *h + sum_of_squares / X(static_cast<float>(dim));
    return X(o.lr) / (root(*h) + o.eps);
  }

  template <class X>
  static MPE_HD void apply(X t, X& w, X g) {
    w = fused(-t, g, w);
  }

  static MPE_HD void apply(float t, float* __restrict w, const float* __restrict g, int64_t dim) {
    for (int64_t c = 0; c < dim; ++c) apply(t, w[c], g[c]);
  }

  static MPE_HD void step(const OptimizerSettings& o, float* __restrict w,
                          const float* __restrict g, float* __restrict h, int64_t dim) {
    apply(scale(o, tree_dot(g, g, dim), h, dim), w, g, dim);
  }
};

MPE_END

#endif
