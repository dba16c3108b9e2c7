// One optimizer step of one row, in the order of docs/numerics.md, section 5: what the kernels do
// with vectors and tiles, written for a single thread.
#ifndef MPEMBED_OPTIM_STEP_H
#define MPEMBED_OPTIM_STEP_H

#include "mpembed/optim/common.h"
#include "mpembed/reduce.h"

MPE_BEGIN

// w, g: dim values; g is overwritten. states: in the optimizer's order, of dim values or of one.
// c: MPE_MAX_COEFFICIENTS, of Optimizer::coefficients.
template <class Optimizer>
MPE_HD void optimizer_step(int32_t decay_mode, const float* c, float* w, float* g,
                           float* const* states, int64_t dim) {
  constexpr int kElements = kElementStates<Optimizer>;
  float* arrays[MPE_MAX_STATES] = {};  // the states of a value an element
  if constexpr (kElements > 0) arrays[0] = states[kNthState<Optimizer, kStateElement, 0>];
  if constexpr (kElements > 1) arrays[1] = states[kNthState<Optimizer, kStateElement, 1>];
  float element[MPE_MAX_STATES] = {};
  const auto for_each_column = [&](auto visit) {
    for (int64_t column = 0; column < dim; ++column) {
      for (int i = 0; i < kElements; ++i) element[i] = arrays[i][column];
      visit(w[column], g[column]);
      for (int i = 0; i < kElements; ++i) arrays[i][column] = element[i];
    }
  };
  for_each_column([&](float& weight, float& gradient) {
    decay<Optimizer>(decay_mode, c, weight, gradient, element);
  });
  float scale = 0.0f;
  if constexpr (Optimizer::kSquares) {
    float* value = states[kNthState<Optimizer, kStateRow, 0>];
    scale = Optimizer::scale(c, tree_dot(g, g, dim), value, dim);
  }
  for_each_column([&](float& weight, float& gradient) {
    Optimizer::apply(c, scale, weight, gradient, element);
  });
  if constexpr (Optimizer::kTrust) {
    const float trust = Optimizer::trust(c, tree_dot(w, w, dim), tree_dot(g, g, dim));
    for (int64_t column = 0; column < dim; ++column) {
      w[column] = fused(-trust, g[column], w[column]);
    }
  }
}

MPE_END

#endif
