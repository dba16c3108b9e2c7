// What every optimizer shares: its settings and weight decay (docs/numerics.md, section 5).
#ifndef MPEMBED_OPTIM_COMMON_H
#define MPEMBED_OPTIM_COMMON_H

#include "mpembed/api_types.h"
#include "mpembed/lanes.h"
#include "mpembed/macros.h"

MPE_BEGIN

enum WeightDecay : int32_t {
  kDecayNone = MPE_decay_none,
  kDecayL2 = MPE_decay_l2,
  kDecayDecoupled = MPE_decay_decoupled
};

// What an optimizer keeps for a row.
enum StateShape : int32_t {
  kStateNone = MPE_STATE_NONE,
  kStateRow = MPE_STATE_ROW,
  kStateElement = MPE_STATE_ELEMENT
};

struct OptimizerSettings {
  float lr, eps, weight_decay;
  int32_t decay_mode;
};

// L2 decay goes into the gradient, decoupled decay into the weight. X: a value or a vector of them.
template <class X>
MPE_HD void decay(const OptimizerSettings& o, X& w, X& g) {
  if (o.decay_mode == kDecayL2) {
    g = fused(X(o.weight_decay), w, g);
  } else if (o.decay_mode == kDecayDecoupled) {
    w = fused(X(-(o.lr * o.weight_decay)), w, w);
  }
}

MPE_HD void apply_decay(const OptimizerSettings& o, float* __restrict w, float* __restrict g,
                        int64_t dim) {
  for (int64_t c = 0; c < dim; ++c) decay(o, w[c], g[c]);
}

MPE_END

#endif
