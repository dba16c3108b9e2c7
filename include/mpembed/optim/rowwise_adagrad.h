// Rowwise Adagrad: h += mean(g^2); w -= lr / (sqrt(h) + eps) * g, h one value a row.
#ifndef MPEMBED_OPTIM_ROWWISE_ADAGRAD_H
#define MPEMBED_OPTIM_ROWWISE_ADAGRAD_H

#include "mpembed/optim/common.h"

MPE_BEGIN

struct RowwiseAdagrad : OptimizerBase {
  static constexpr int kNumStates = 1;
  static constexpr State kStates[] = {{"sum", kStateRow, 0.0f}};
  static constexpr const char* kParameters[] = {"eps", nullptr};
  static constexpr bool kSquares = true;
  enum : int { kEps = kOwnParameters };
  enum : int { kRate = kOwnCoefficients, kEpsilon };

  static MPE_HD void coefficients(const double* p, int32_t mode, uint64_t, float* c) {
    decay_coefficient(p, mode, c);
    c[kRate] = static_cast<float>(p[kLr]);
    c[kEpsilon] = static_cast<float>(p[kEps]);
  }

  // X: one row, or several.
  template <class X>
  static MPE_HD X scale(const float* c, X sum_of_squares, X* h, int64_t dim) {
    *h = *h + sum_of_squares / X(static_cast<float>(dim));
    return X(c[kRate]) / (root(*h) + c[kEpsilon]);
  }

  template <class X>
  static MPE_HD void apply(const float*, X scale, X& w, X& g, X*) {
    w = fused(-scale, g, w);
  }
};

MPE_END

#endif
