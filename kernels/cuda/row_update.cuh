// One row's optimizer step by a tile: read, step, check, write.
#pragma once

#include "cuda/gradient.cuh"
#include "cuda/noise.cuh"
#include "cuda/probe.cuh"
#include "cuda/slot.cuh"
#include "cuda/tree.cuh"

namespace mpembed {
namespace cuda {

__device__ inline bool exceeds(float x, uint32_t bound) {
  return (float_bits(x) & 0x7FFFFFFFu) > bound;
}

// The rows of workspace that a long row's step takes: weights, gradient, states.
template <class Optimizer>
constexpr int kScratchRows = 2 + kElementStates<Optimizer>;
inline int64_t scratch_rows(const StateShapes& states) { return 2 + states.num_elements; }

// Calls visit(k) for k = 0 .. kCount - 1, each an integral constant.
template <int kCount, class Visit>
__device__ __forceinline__ void unrolled(Visit visit) {
  if constexpr (kCount > 0) {
    unrolled<kCount - 1>(visit);
    visit(std::integral_constant<int, kCount - 1>{});
  }
}

// One row's optimizer step. Formats differ only in reading and writing, so the step itself stands
// here once.
template <class Optimizer, bool kLong>
class RowUpdate {
 public:
  __device__ __forceinline__ RowUpdate(const Update& update, const Tile& tile, float* scratch,
                                       int64_t stride)
      : update_(update), tile_(tile), weights_(scratch), grad_(scratch + stride) {
    MPE_UNROLL
    for (int k = 0; k < kElements; ++k) elements_[k].place(scratch + (2 + k) * stride);
  }

  __device__ __forceinline__ RowFragment<kLong>& gradient() { return grad_; }

  // Returns false, with nothing written, if the result is not finite. `in_table`: the row is read
  // there, whether it is cached or not. `single`: the row occurs once, and its gradient still lacks
  // its factor; it is applied here, so that the gradient and the row are loaded at the same time.
  __device__ __forceinline__ bool run(int32_t t, int64_t row, int32_t slot, bool in_table,
                                      bool single, float factor) {
    const mpe_table& table = update_.tables.table[t];
    // Loaded with the row, so that the step does not wait for them.
    const float* from = update_.coefficients + static_cast<int64_t>(t) * MPE_MAX_COEFFICIENTS;
    float coefficients[MPE_MAX_COEFFICIENTS];
    MPE_UNROLL
    for (int i = 0; i < MPE_MAX_COEFFICIENTS; ++i) coefficients[i] = from[i];
    const Slot cached{update_.tables, update_.cache, slot};
    if (in_table) {
      load(table, row);
    } else {
      load(cached);
    }
    if (single) multiply(factor);
    step(coefficients);
    if (beyond(table)) return false;
    if (is_measured(update_.rounding, table, row)) {
      measure(tile_, update_.dim(), table,
              MeasuredRow<kLong>{weights_, slot >= 0 ? cached.row() : nullptr,
                                 table.rows + row * table.row_stride},
              update_.rounding.random());
    }
    if (slot >= 0) {
      store(cached);
      if (tile_.lane == 0) {
        mark_dirty(update_.cache, slot);
        mark_written(update_.cache.changed, slot);
      }
    } else {
      store(table, row);
      if (tile_.lane == 0) mark_written(table.changed, row);
    }
    return true;
  }

 private:
  static constexpr int kElements = kElementStates<Optimizer>, kValues = kRowStates<Optimizer>;
  static_assert(kValues <= 1, "a row has one state of one value at most");

  // Calls visit(k, number) for each state of a value a column; number: its place among all states.
  template <class Visit>
  static __device__ __forceinline__ void each_element(Visit visit) {
    unrolled<kElements>(
        [&](auto k) { visit(k.value, kNthState<Optimizer, kStateElement, decltype(k)::value>); });
  }
  // The same for the state of one value.
  template <class Visit>
  static __device__ __forceinline__ void each_value(Visit visit) {
    unrolled<kValues>([&](auto k) { visit(kNthState<Optimizer, kStateRow, decltype(k)::value>); });
  }

  template <class Visit>
  __device__ __forceinline__ void each(Visit visit) const {
    each_chunk<kLong>(tile_, update_.dim(), visit);
  }

  __device__ __forceinline__ void load(const Slot& slot) {
    if constexpr (kValues > 0) value_ = *slot.value(0);
    each([&](int32_t c) {
      load_cached(slot.row(), c, weights_);
      MPE_UNROLL
      for (int k = 0; k < kElements; ++k) {
        load_cached(slot.element(k), c, elements_[k]);
      }
    });
  }
  __device__ __forceinline__ void load_cached(const float* from, int32_t c,
                                              RowFragment<kLong>& to) {
    float x[kChunk];
    load_floats(from + c, update_.dim() - c, x);
    to.save(c, x);
  }

  __device__ __forceinline__ void load(const mpe_table& table, int64_t row) {
    each_value([&](int number) { value_ = read_value(table.states[number], row); });
    each([&](int32_t c) {
      float x[kChunk];
      read_table_chunk(update_.tables, table, row, c, x);
      weights_.save(c, x);
    });
    each_element([&](int k, int number) {
      read_state<kLong>(tile_, update_.tables, table.states[number], row,
                        [&](int32_t c, const float* x) { elements_[k].save(c, x); });
    });
  }

  __device__ __forceinline__ void multiply(float factor) {
    each([&](int32_t c) {
      float grad[kChunk];
      grad_.load(c, grad);
      MPE_UNROLL
      for (int i = 0; i < kChunk; ++i) grad[i] = fmaf(factor, grad[i], 0.0f);
      fill_beyond(grad, update_.dim() - c, 0.0f);
      grad_.save(c, grad);
    });
  }

  // Calls visit(w, g, states) for each element of this lane's columns; visit may change them.
  template <class Visit>
  __device__ __forceinline__ void change(Visit visit) {
    each([&](int32_t c) {
      float weights[kChunk], grad[kChunk], states[kElements + 1][kChunk];
      weights_.load(c, weights);
      grad_.load(c, grad);
      MPE_UNROLL
      for (int k = 0; k < kElements; ++k) elements_[k].load(c, states[k]);
      MPE_UNROLL
      for (int i = 0; i < kChunk; ++i) {
        float element[kElements + 1];
        MPE_UNROLL
        for (int k = 0; k < kElements; ++k) element[k] = states[k][i];
        visit(weights[i], grad[i], element);
        MPE_UNROLL
        for (int k = 0; k < kElements; ++k) states[k][i] = element[k];
      }
      weights_.save(c, weights);
      grad_.save(c, grad);
      MPE_UNROLL
      for (int k = 0; k < kElements; ++k) elements_[k].save(c, states[k]);
    });
  }

  template <int32_t kMode>
  __device__ __forceinline__ void decay_all(const float* coefficients) {
    change([&](float& w, float& g, float* states) {
      decay<Optimizer>(kMode, coefficients, w, g, states);
    });
  }

  __device__ __forceinline__ void step(const float* coefficients) {
    // In registers a pass of its own is free, and asks for the mode once. Long rows are in memory.
    constexpr bool kApart = !kLong || Optimizer::kSquares;
    const int32_t mode = update_.decay_mode;
    if (kApart && mode == kDecayL2) {
      decay_all<kDecayL2>(coefficients);
    } else if (kApart && mode == kDecayDecoupled) {
      decay_all<kDecayDecoupled>(coefficients);
    }
    float scale = 0.0f;
    if constexpr (Optimizer::kSquares) {
      scale = Optimizer::scale(coefficients, sum_of_squares(grad_), &value_, update_.dim());
    }
    change([&](float& w, float& g, float* states) {
      if constexpr (!kApart) decay<Optimizer>(mode, coefficients, w, g, states);
      Optimizer::apply(coefficients, scale, w, g, states);
    });
    if constexpr (Optimizer::kTrust) {
      const float weights = sum_of_squares(weights_), direction = sum_of_squares(grad_);
      const float trust = Optimizer::trust(coefficients, weights, direction);
      change([&](float& w, float& g, float*) { w = fmaf(-trust, g, w); });
    }
  }

  __device__ __forceinline__ float sum_of_squares(const RowFragment<kLong>& fragment) const {
    const auto chunk = [&](int32_t c, float* x) {
      if (c < update_.dim()) fragment.load(c, x);
      fill_beyond(x, update_.dim() - c, 0.0f);
    };
    if constexpr (kLong) {
      SquaresTree<kWarp> tree(tile_);
      for (int32_t first = 0; first < update_.dim(); first += kRound) {
        float x[kChunk] = {};
        chunk(first + tile_.lane * kChunk, x);
        tree.add(x);
      }
      return tree.fold();
    } else {
      return with_lanes(tile_, [&](auto lanes) {
        SquaresTree<decltype(lanes)::value> tree(tile_);
        float x[kChunk] = {};
        chunk(tile_.lane * kChunk, x);
        tree.add(x);
        return tree.fold();
      });
    }
  }

  __device__ __forceinline__ bool beyond(const mpe_table& table) const {
    const uint32_t bound =
        with_format(table.precision, [](auto format) { return decltype(format)::kMaxAbsBits; });
    bool bad = fragment_exceeds(weights_, bound);
    each_value(
        [&](int number) { bad = bad || exceeds(value_, state_bound(table.states[number])); });
    each_element([&](int k, int number) {
      bad = bad || fragment_exceeds(elements_[k], state_bound(table.states[number]));
    });
    return tile_.any(bad);
  }

  static __device__ __forceinline__ uint32_t state_bound(const mpe_state& state) {
    return with_stored_format(state, [](auto format) { return decltype(format)::kMaxAbsBits; });
  }

  __device__ __forceinline__ bool fragment_exceeds(const RowFragment<kLong>& fragment,
                                                   uint32_t bound) const {
    bool bad = false;
    each([&](int32_t c) {
      float x[kChunk];
      fragment.load(c, x);
      fill_beyond(x, update_.dim() - c, 0.0f);
      MPE_UNROLL
      for (int i = 0; i < kChunk; ++i) bad |= exceeds(x[i], bound);
    });
    return bad;
  }

  __device__ __forceinline__ void store(const Slot& slot) {
    each([&](int32_t c) {
      store_cached(weights_, c, slot.row());
      MPE_UNROLL
      for (int k = 0; k < kElements; ++k) {
        store_cached(elements_[k], c, slot.element(k));
      }
    });
    if constexpr (kValues > 0) {
      if (tile_.lane == 0) *slot.value(0) = value_;
    }
  }
  __device__ __forceinline__ void store_cached(const RowFragment<kLong>& from, int32_t c,
                                               float* to) const {
    float x[kChunk];
    from.load(c, x);
    store_floats(to + c, update_.dim() - c, x);
  }

  __device__ __forceinline__ void store(const mpe_table& table, int64_t row) {
    write_table_row<kLong>(tile_, update_.tables, update_.rounding, table, row,
                           [&](int32_t c, float* x) { weights_.load(c, x); });
    each_value([&](int number) {
      if (tile_.lane == 0) write_value(update_.rounding, table, number, row, value_);
    });
    each_element([&](int k, int number) {
      write_state<kLong>(tile_, update_.tables, update_.rounding, table, number, row,
                         [&](int32_t c, float* x) { elements_[k].load(c, x); });
    });
  }

  const Update& update_;
  const Tile& tile_;
  RowFragment<kLong> weights_, grad_, elements_[kElements + 1];
  float value_ = 0.0f;
};

}  // namespace cuda
}  // namespace mpembed
