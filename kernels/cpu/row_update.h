// The optimizer's step of several rows at a time, so that the chain of operations of one row hides
// behind another's. For one row it is written down in include/mpembed/optim/step.h.
#pragma once

#include "cpu/encode.h"
#include "state_formats.h"

MPE_BEGIN

// The rows that a task is working on, all of one table. The floats of row j begin at j * stride;
// those of weights and gradients are zero beyond the row's columns.
struct RowsInWork {
  const int64_t dim, stride;
  int64_t n = 0;
  float *const weights, *const grads;
  float* const elements[MPE_MAX_STATES];        // the states of a value an element
  float values[MPE_MAX_STATES][kMaxRows] = {};  // those of a value a row
  int64_t rows[kMaxRows], slots[kMaxRows];      // numbers in the table; slots, -1: not cached
  bool storable[kMaxRows];                      // what the step made of the row and its states

  // memory: floats_of(...) zeros.
  RowsInWork(float* memory, int64_t dim_, int64_t stride_)
      : dim(dim_),
        stride(stride_),
        weights(memory),
        grads(weights + encoder_capacity(dim) * stride),
        elements{grads + encoder_capacity(dim) * stride,
                 grads + 2 * encoder_capacity(dim) * stride} {}

  static int64_t floats_of(const StateShapes& shapes, int64_t dim, int64_t stride) {
    return (2 + shapes.num_elements) * encoder_capacity(dim) * stride;
  }

  float* weight(int64_t j) const { return weights + j * stride; }
  float* grad(int64_t j) const { return grads + j * stride; }
  float* element(int i, int64_t j) const { return elements[i] + j * stride; }
};

// What the step of a table's rows depends on.
struct StepSettings {
  int32_t decay_mode;
  const float* coefficients;
  // The largest magnitudes that can be stored, as bits of a float.
  uint32_t weight_bound, element_bounds[MPE_MAX_STATES], value_bounds[MPE_MAX_STATES];
};

// Whether values exceed a bound in magnitude, or are not finite.
class Bound {
 public:
  explicit Bound(uint32_t bits) : bits_(static_cast<int32_t>(bits)) {}
  Ints exceeded_by(Floats x) const { return (int_bits(x) & 0x7FFFFFFF) > bits_; }

 private:
  Ints bits_;
};

// Calls visit(c, lanes) for every vector of dim columns; lanes: those that are the row's.
template <class Visit>
inline void each_vector(int64_t dim, Visit visit) {
  int64_t c = 0;
  for (; c + kLanes <= dim; c += kLanes) visit(c, Ints(-1));
  if (c < dim) visit(c, first_lanes(dim - c));
}

template <class Optimizer>
class RowStep {
 public:
  RowStep(const StepSettings& settings, RowsInWork& work) : settings_(settings), work_(work) {}

  void run() {
    float squares[kMaxRows] = {}, scales[kMaxRows] = {};
    for (int64_t j = 0; j < work_.n; ++j) {
      if (settings_.decay_mode != kDecayNone) decay_row(j);
      if constexpr (Optimizer::kSquares) squares[j] = square_sum(work_.grad(j), work_.stride);
    }
    if constexpr (Optimizer::kSquares) scale_rows(squares, scales);
    for (int64_t j = 0; j < work_.n; ++j) work_.storable[j] = apply_row(j, scales[j]);
    if constexpr (Optimizer::kTrust) trust_rows();
  }

 private:
  static constexpr int kElements = kElementStates<Optimizer>;

  // Calls change(weight, gradient, states, lanes) for every vector of row j, and stores what it
  // makes of them. What a store may not change is read before the first.
  template <bool kStoresGradient, class Change>
  void each_element(int64_t j, Change change) const {
    float *const weights = work_.weight(j), *const gradients = work_.grad(j);
    float* elements[kElements + 1];
    for (int i = 0; i < kElements; ++i) elements[i] = work_.element(i, j);
    each_vector(work_.dim, [&](int64_t c, Ints lanes) {
      Floats weight = Floats::load(weights + c), gradient = Floats::load(gradients + c);
      Floats states[kElements + 1];
      for (int i = 0; i < kElements; ++i) states[i] = Floats::load(elements[i] + c);
      change(weight, gradient, states, lanes);
      select(lanes, weight, Floats()).store(weights + c);
      if (kStoresGradient) select(lanes, gradient, Floats()).store(gradients + c);
      for (int i = 0; i < kElements; ++i) states[i].store(elements[i] + c);
    });
  }

  void decay_row(int64_t j) const {
    const Coefficients coefficients(settings_);
    const int32_t mode = settings_.decay_mode;
    each_element<true>(j, [&](Floats& weight, Floats& gradient, Floats* states, Ints) {
      decay<Optimizer>(mode, coefficients.values, weight, gradient, states);
    });
  }

  void scale_rows(const float* squares, float* scales) const {
    const Coefficients coefficients(settings_);
    for (int64_t j = 0; j < work_.n; j += kLanes) {
      Floats value = Floats::load(work_.values[0] + j);
      const Floats sums = Floats::load(squares + j);
      Optimizer::scale(coefficients.values, sums, &value, work_.dim).store(scales + j);
      value.store(work_.values[0] + j);
    }
  }

  // False: the row or a state cannot be stored. Weights that trust_rows moves are not final.
  bool apply_row(int64_t j, float scale) const {
    const Coefficients coefficients(settings_);
    const Floats scales(scale);
    const Bound weight_bound(settings_.weight_bound);
    Ints bad(0);
    const auto apply = [&](Floats& weight, Floats& gradient, Floats* states, Ints lanes) {
      Optimizer::apply(coefficients.values, scales, weight, gradient, states);
      Ints wrong = Optimizer::kTrust ? Ints(0) : weight_bound.exceeded_by(weight);
      for (int i = 0; i < kElements; ++i) {
        wrong = wrong | Bound(settings_.element_bounds[i]).exceeded_by(states[i]);
      }
      bad = bad | (wrong & lanes);
    };
    each_element<Optimizer::kTrust>(j, apply);
    bool good = !any(bad);
    for (int i = 0; i < kRowStates<Optimizer>; ++i) {
      good = good && count_beyond(&work_.values[i][j], 1, settings_.value_bounds[i]) == 0;
    }
    return good;
  }

  // The weights move along the directions that apply() left in place of the gradients.
  void trust_rows() const {
    float weights[kMaxRows] = {}, directions[kMaxRows] = {}, trusts[kMaxRows];
    for (int64_t j = 0; j < work_.n; ++j) {
      weights[j] = square_sum(work_.weight(j), work_.stride);
      directions[j] = square_sum(work_.grad(j), work_.stride);
    }
    const Coefficients coefficients(settings_);
    for (int64_t j = 0; j < work_.n; j += kLanes) {
      const Floats w = Floats::load(weights + j), r = Floats::load(directions + j);
      Optimizer::trust(coefficients.values, w, r).store(trusts + j);
    }
    for (int64_t j = 0; j < work_.n; ++j) {
      work_.storable[j] = move_row(j, trusts[j]) && work_.storable[j];
    }
  }
  bool move_row(int64_t j, float trust) const {
    float *const weights = work_.weight(j), *const directions = work_.grad(j);
    const Bound bound(settings_.weight_bound);
    Ints bad(0);
    each_vector(work_.dim, [&](int64_t c, Ints lanes) {
      const Floats direction = Floats::load(directions + c);
      const Floats weight = fused(Floats(-trust), direction, Floats::load(weights + c));
      select(lanes, weight, Floats()).store(weights + c);
      bad = bad | (bound.exceeded_by(weight) & lanes);
    });
    return !any(bad);
  }

  // A copy, which no store can change.
  struct Coefficients {
    float values[MPE_MAX_COEFFICIENTS];
    explicit Coefficients(const StepSettings& settings) {
      memcpy(values, settings.coefficients, sizeof values);
    }
  };

  const StepSettings& settings_;
  RowsInWork& work_;
};

MPE_END
