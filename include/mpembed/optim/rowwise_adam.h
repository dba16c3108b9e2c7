// Rowwise Adam: Adam whose second moment is one value a row, of the mean of g^2.
#ifndef MPEMBED_OPTIM_ROWWISE_ADAM_H
#define MPEMBED_OPTIM_ROWWISE_ADAM_H

#include "mpembed/optim/adam.h"

MPE_BEGIN

struct RowwiseAdam : AdamBase {
  static constexpr State kStates[] = {{"exp_avg", kStateElement, 0.0f},
                                      {"exp_avg_sq", kStateRow, 0.0f}};
  static constexpr bool kSquares = true;

  // X: one row, or several.
  template <class X>
  static MPE_HD X scale(const float* c, X sum_of_squares, X* v, int64_t dim) {
    move(c[kSecond], sum_of_squares / X(static_cast<float>(dim)), *v);
    return X(c[kRate]) / (root(*v) + c[kEpsilon]);
  }

  template <class X>
  static MPE_HD void apply(const float* c, X scale, X& w, X& g, X* states) {
    move(c[kFirst], g, states[0]);
    w = fused(-scale, states[0], w);
  }
};

MPE_END

#endif
