// LAMB with a trust ratio a row: Adam's direction r, with decoupled decay r + weight_decay * w, and
// w -= lr * |w| / |r| * r; the ratio is 1 where either norm is zero.
#ifndef MPEMBED_OPTIM_LAMB_H
#define MPEMBED_OPTIM_LAMB_H

#include "mpembed/optim/adam.h"

MPE_BEGIN

struct Lamb : AdamBase {
  static constexpr State kStates[] = {{"exp_avg", kStateElement, 0.0f},
                                      {"exp_avg_sq", kStateElement, 0.0f}};
  static constexpr bool kTrust = true;
  enum : int { kFirstScale = kNext, kSecondScale, kPull };

  static MPE_HD void coefficients(const double* p, int32_t mode, uint64_t t, float* c) {
    AdamBase::coefficients(p, mode, t, c);
    c[kRate] = static_cast<float>(p[kLr]);
    c[kDecay] = static_cast<float>(p[kWeightDecay]);
    c[kFirstScale] = static_cast<float>(1.0 / (1.0 - power_of(p[kBeta1], t)));
    c[kSecondScale] = static_cast<float>(1.0 / sqrt(1.0 - power_of(p[kBeta2], t)));
    c[kPull] = mode == kDecayDecoupled ? c[kDecay] : 0.0f;
  }

  // Decoupled decay is part of the direction.
  template <class X>
  static MPE_HD void shrink(const float*, X&, X*) {}

  template <class X>
  static MPE_HD void apply(const float* c, X, X& w, X& g, X* states) {
    move(c[kFirst], g, states[0]);
    move_to_square(c[kSecond], g, states[1]);
    const X first = states[0] * c[kFirstScale];
    const X second = fused(root(states[1]), X(c[kSecondScale]), X(c[kEpsilon]));
    g = fused(X(c[kPull]), w, first / second);
  }

  // X: one row, or several.
  template <class X>
  static MPE_HD X trust(const float* c, X squares_of_weights, X squares_of_direction) {
    const X w = root(squares_of_weights), r = root(squares_of_direction);
    return X(c[kRate]) * select(w > 0.0f, select(r > 0.0f, w / r, X(1.0f)), X(1.0f));
  }
};

MPE_END

#endif
