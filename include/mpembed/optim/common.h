// What every optimizer shares: how it declares its states, parameters and coefficients, and weight
// decay (docs/numerics.md, section 5).
//
// An optimizer is a struct with
// - kStates: what it keeps for a row, in order;
// - kParameters: the names of its own parameters, which follow lr and weight_decay;
// - coefficients(parameters, decay mode, updates, c): what the steps below read, at most
//   MPE_MAX_COEFFICIENTS of them, in double precision out of the parameters and the number of
//   updates, this one included, once a table and update;
// - shrink(): decoupled weight decay;
// - apply(c, scale, w, g, states): the step of an element, or of a vector of them; its states are
//   those of a value an element, and scale counts with kSquares alone.
// Two marks say that it needs sums over a row, for which kernels use the lane tree:
// - kSquares: before apply(), scale() gets the sum of the squared gradients and the row's state of
//   one value;
// - kTrust: apply() turns the gradient into a direction and leaves the weight; trust() gets the sum
//   of squares of each, and the weight moves along the direction by what it returns.
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

enum StateShape : int32_t { kStateRow = MPE_STATE_ROW, kStateElement = MPE_STATE_ELEMENT };

struct State {
  const char* name;
  StateShape shape;
  float initial;
};

// The parameters that all have, and the coefficient that all have.
enum Parameter : int { kLr = 0, kWeightDecay = 1, kOwnParameters = 2 };
enum Coefficient : int { kDecay = 0, kOwnCoefficients = 1 };

// The default of what an optimizer declares.
struct OptimizerBase {
  static constexpr int kNumStates = 0;
  static constexpr bool kSquares = false;
  static constexpr bool kTrust = false;

  static MPE_HD void decay_coefficient(const double* p, int32_t mode, float* c) {
    const float decay = static_cast<float>(p[kWeightDecay]);
    c[kDecay] = mode == kDecayDecoupled ? -(static_cast<float>(p[kLr]) * decay) : decay;
  }
  // w shrinks towards zero. states: of the element.
  template <class X>
  static MPE_HD void shrink(const float* c, X& w, X*) {
    w = fused(X(c[kDecay]), w, w);
  }
};

// How many states of a shape an optimizer has, before its state number `end`.
template <class Optimizer>
constexpr int states_before(StateShape shape, int end) {
  int n = 0;
  for (int i = 0; i < end; ++i) n += Optimizer::kStates[i].shape == shape ? 1 : 0;
  return n;
}
template <class Optimizer>
constexpr int count_states(StateShape shape) {
  if constexpr (Optimizer::kNumStates == 0) {
    return 0;
  } else {
    return states_before<Optimizer>(shape, Optimizer::kNumStates);
  }
}
template <class Optimizer>
constexpr int kElementStates = count_states<Optimizer>(kStateElement);
template <class Optimizer>
constexpr int kRowStates = count_states<Optimizer>(kStateRow);

// Number among all states of the state number i of a shape.
template <class Optimizer>
constexpr int nth_state(StateShape shape, int i) {
  int at = 0;
  while (Optimizer::kStates[at].shape != shape || states_before<Optimizer>(shape, at) != i) ++at;
  return at;
}
// The same where device code is compiled, which may not call the host's functions.
template <class Optimizer, StateShape kShape, int kI>
constexpr int kNthState = nth_state<Optimizer>(kShape, kI);

// L2 decay goes into the gradient, decoupled decay into the weight. X: a value or a vector of them.
template <class Optimizer, class X>
MPE_HD void decay(int32_t mode, const float* c, X& w, X& g, X* states) {
  if (mode == kDecayL2) {
    g = fused(X(c[kDecay]), w, g);
  } else if (mode == kDecayDecoupled) {
    Optimizer::shrink(c, w, states);
  }
}

// x to the power of the number of updates, by products alone: the same bits everywhere.
MPE_HD double power_of(double x, uint64_t n) {
  double power = 1.0;
  for (; n != 0; n >>= 1) {
    if ((n & 1) != 0) power = power * x;
    x = x * x;
  }
  return power;
}

MPE_END

#endif
