// FTRL-proximal (McMahan et al., 2013), with P(n) = n^-lr_power: s = (P(n + g^2) - P(n)) / lr;
// z += g - s * w; n += g^2; w = 0 where |z| <= l1, else (sign(z) * l1 - z) / ((beta + P(n)) / lr +
// l2). z and n one value an element. A row starts from its weights: where z is 0 and w is not, z
// becomes what w follows from.
#ifndef MPEMBED_OPTIM_FTRL_H
#define MPEMBED_OPTIM_FTRL_H

#include "mpembed/optim/common.h"
#include "mpembed/optim/power.h"

MPE_BEGIN

struct Ftrl : OptimizerBase {
  static constexpr int kNumStates = 2;
  static constexpr State kStates[] = {{"z", kStateElement, 0.0f}, {"n", kStateElement, 0.0f}};
  static constexpr const char* kParameters[] = {"lr_power", "l1", "l2", "beta", nullptr};
  enum : int { kLrPower = kOwnParameters, kL1, kL2, kBeta };
  enum : int { kRate = kOwnCoefficients, kPower, kSparse, kRidge, kStart };

  static MPE_HD void coefficients(const double* p, int32_t mode, uint64_t, float* c) {
    decay_coefficient(p, mode, c);
    c[kRate] = static_cast<float>(p[kLr]);
    c[kPower] = static_cast<float>(-p[kLrPower]);
    c[kSparse] = static_cast<float>(p[kL1]);
    c[kRidge] = static_cast<float>(p[kL2]);
    c[kStart] = static_cast<float>(p[kBeta]);
  }

  // The weight follows from z, which therefore shrinks with it.
  template <class X>
  static MPE_HD void shrink(const float* c, X& w, X* states) {
    w = fused(X(c[kDecay]), w, w);
    states[0] = fused(X(c[kDecay]), states[0], states[0]);
  }

  template <class X>
  static MPE_HD void apply(const float* c, X, X& w, X& g, X* states) {
    constexpr int32_t kMagnitude = 0x7FFFFFFF;
    const X before = power(states[1], c[kPower]);
    const X own = -fused(w, slope(c, before), with_sign(c[kSparse], w));
    const X old = select(states[0] == 0.0f, select(w == 0.0f, states[0], own), states[0]);
    states[1] = fused(g, g, states[1]);
    const X after = power(states[1], c[kPower]);
    const X z = fused((before - after) / X(c[kRate]), w, old + g);
    states[0] = z;
    const X beyond = (with_sign(c[kSparse], z) - z) / slope(c, after);
    w = select(bits_value(int_bits(z) & kMagnitude) > c[kSparse], beyond, X(0.0f));
  }

 private:
  // What a weight is multiplied with in its z.
  template <class X>
  static MPE_HD X slope(const float* c, X power_of_n) {
    return (power_of_n + c[kStart]) / X(c[kRate]) + c[kRidge];
  }
  // A magnitude with the sign of x.
  template <class X>
  static MPE_HD X with_sign(float magnitude, X x) {
    constexpr int32_t kSign = -0x7FFFFFFF - 1;
    return bits_value(int_bits(X(magnitude)) | (int_bits(x) & kSign));
  }
};

MPE_END

#endif
