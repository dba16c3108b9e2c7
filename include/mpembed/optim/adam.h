// Adam with lazy moments, as torch.optim.SparseAdam: m += (1 - beta1) * (g - m);
// v += (1 - beta2) * (g^2 - v); w -= lr * sqrt(1 - beta2^t) / (1 - beta1^t) * m / (sqrt(v) + eps),
// m and v one value an element, t the number of updates.
#ifndef MPEMBED_OPTIM_ADAM_H
#define MPEMBED_OPTIM_ADAM_H

#include "mpembed/optim/common.h"

MPE_BEGIN

// What the optimizers with two moments share.
struct AdamBase : OptimizerBase {
  static constexpr int kNumStates = 2;
  static constexpr const char* kParameters[] = {"beta1", "beta2", "eps", nullptr};
  enum : int { kBeta1 = kOwnParameters, kBeta2, kEps };
  enum : int { kRate = kOwnCoefficients, kFirst, kSecond, kEpsilon, kNext };

  static MPE_HD void coefficients(const double* p, int32_t mode, uint64_t t, float* c) {
    const double first = 1.0 - power_of(p[kBeta1], t), second = 1.0 - power_of(p[kBeta2], t);
    decay_coefficient(p, mode, c);
    c[kRate] = static_cast<float>(p[kLr] * sqrt(second) / first);
    c[kFirst] = static_cast<float>(1.0 - p[kBeta1]);
    c[kSecond] = static_cast<float>(1.0 - p[kBeta2]);
    c[kEpsilon] = static_cast<float>(p[kEps]);
  }

  // Moves a moment towards x by its share.
  template <class X>
  static MPE_HD void move(float share, X x, X& moment) {
    moment = fused(X(share), x - moment, moment);
  }
  template <class X>
  static MPE_HD void move_to_square(float share, X x, X& moment) {
    moment = fused(X(share), fused(x, x, -moment), moment);
  }
};

struct Adam : AdamBase {
  static constexpr State kStates[] = {{"exp_avg", kStateElement, 0.0f},
                                      {"exp_avg_sq", kStateElement, 0.0f}};

  template <class X>
  static MPE_HD void apply(const float* c, X, X& w, X& g, X* states) {
    move(c[kFirst], g, states[0]);
    move_to_square(c[kSecond], g, states[1]);
    w = fused(X(-c[kRate]), states[0] / (root(states[1]) + c[kEpsilon]), w);
  }
};

MPE_END

#endif
