// One row's optimizer step by a tile: read, step, check, write.
#pragma once

#include "cuda/gradient.cuh"
#include "cuda/probe.cuh"
#include "cuda/tree.cuh"
#include "state_formats.h"

namespace mpembed {
namespace cuda {

__device__ inline bool exceeds(float x, uint32_t bound) {
  return (float_bits(x) & 0x7FFFFFFFu) > bound;
}

// One row's optimizer step. Formats differ only in reading and writing, so the step itself stands
// here once.
template <class Optimizer, bool kLong>
class RowUpdate {
 public:
  __device__ __forceinline__ RowUpdate(const Update& update, const Tile& tile, float* scratch,
                                       int64_t stride)
      : update_(update),
        tile_(tile),
        weights_(scratch),
        grad_(scratch + stride),
        state_(scratch + 2 * stride) {}

  __device__ __forceinline__ RowFragment<kLong>& gradient() { return grad_; }

  // Returns false, with nothing written, if the result is not finite. `single`: the row occurs
  // once, and its gradient still lacks its factor; it is applied here, so that the gradient and the
  // row are loaded at the same time.
  __device__ __forceinline__ bool run(const mpe_table& table, int64_t row, int64_t slot,
                                      bool single, float factor) {
    float* cached = slot >= 0 ? update_.cache.rows + slot * update_.dim() : nullptr;
    load(table, row, cached);
    if (single) multiply(factor);
    step();
    if (beyond(table)) return false;
    if (cached != nullptr) {
      each([&](int32_t c) {
        float weights[kChunk];
        weights_.load(c, weights);
        store_floats(cached + c, update_.dim() - c, weights);
      });
      if (tile_.lane == 0) mark_dirty(update_.cache, slot);
    } else {
      write_table_row<kLong>(tile_, update_.tables, update_.rounding, table, row,
                             [&](int32_t c, float* x) { weights_.load(c, x); });
    }
    store_state(table, row);
    return true;
  }

 private:
  template <class Visit>
  __device__ __forceinline__ void each(Visit visit) const {
    each_chunk<kLong>(tile_, update_.dim(), visit);
  }

  __device__ __forceinline__ void load(const mpe_table& table, int64_t row, const float* cached) {
    if constexpr (Optimizer::kState == kStateRow) {
      row_state_ = static_cast<const float*>(table.state)[row];
    }
    each([&](int32_t c) {
      float weights[kChunk];
      if (cached != nullptr) {
        load_floats(cached + c, update_.dim() - c, weights);
      } else {
        read_table_chunk(update_.tables, table, row, c, weights);
      }
      weights_.save(c, weights);
    });
    if constexpr (Optimizer::kState == kStateElement) {
      with_state_format(table.state_format, [&](auto format) {
        using Format = decltype(format);
        each([&](int32_t c) {
          float state[kChunk];
          read_chunk<Format>(state_row<Format>(table, row), update_.dim(), c,
                             update_.tables.alignment, state);
          state_.save(c, state);
        });
      });
    }
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

  // Calls visit(weights, grad, state) for this lane's columns; visit may change them.
  template <class Visit>
  __device__ __forceinline__ void change(Visit visit) {
    each([&](int32_t c) {
      float weights[kChunk], grad[kChunk], state[kChunk];
      weights_.load(c, weights);
      grad_.load(c, grad);
      if (Optimizer::kState == kStateElement) state_.load(c, state);
      visit(weights, grad, state);
      weights_.save(c, weights);
      grad_.save(c, grad);
      if (Optimizer::kState == kStateElement) state_.save(c, state);
    });
  }

  __device__ __forceinline__ void step() {
    const OptimizerSettings settings = update_.settings();
    if constexpr (Optimizer::kState == kStateRow) {
      change([&](float* weights, float* grad, float*) {
        apply_decay(settings, weights, grad, kChunk);
      });
      const float scale = Optimizer::scale(settings, sum_of_squares(), &row_state_, update_.dim());
      change([&](float* weights, float* grad, float*) {
        Optimizer::apply(scale, weights, grad, kChunk);
      });
    } else {
      change([&](float* weights, float* grad, float* state) {
        apply_decay(settings, weights, grad, kChunk);
        Optimizer::step(settings, weights, grad, state, kChunk);
      });
    }
  }

  __device__ __forceinline__ float sum_of_squares() const {
    if constexpr (kLong) {
      SquaresTree<kWarp> tree(tile_);
      for (int32_t first = 0; first < update_.dim(); first += kRound) {
        const int32_t c = first + tile_.lane * kChunk;
        float grad[kChunk] = {};
        if (c < update_.dim()) grad_.load(c, grad);
        tree.add(grad);
      }
      return tree.fold();
    } else {
      return with_lanes(tile_, [&](auto lanes) {
        SquaresTree<decltype(lanes)::value> tree(tile_);
        float grad[kChunk];
        grad_.load(0, grad);
        tree.add(grad);
        return tree.fold();
      });
    }
  }

  __device__ __forceinline__ bool beyond(const mpe_table& table) const {
    const uint32_t bound =
        with_format(table.precision, [](auto format) { return decltype(format)::kMaxAbsBits; });
    bool bad = fragment_exceeds(weights_, bound);
    if constexpr (Optimizer::kState == kStateRow) {
      bad = bad || exceeds(row_state_, Fp32::kMaxAbsBits);
    }
    if constexpr (Optimizer::kState == kStateElement) {
      with_state_format(table.state_format, [&](auto format) {
        bad = bad || fragment_exceeds(state_, decltype(format)::kMaxAbsBits);
      });
    }
    return tile_.any(bad);
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

  __device__ __forceinline__ void store_state(const mpe_table& table, int64_t row) {
    if constexpr (Optimizer::kState == kStateRow) {
      if (tile_.lane == 0) static_cast<float*>(table.state)[row] = row_state_;
    }
    if constexpr (Optimizer::kState == kStateElement) {
      with_state_format(table.state_format, [&](auto format) {
        using Format = decltype(format);
        const Target target{update_.rounding.stream(kDomainState, table, row),
                            state_row<Format>(table, row), update_.dim(), update_.tables.alignment};
        write_row<Format, kLong>(tile_, target, update_.rounding.stochastic(),
                                 [&](int32_t c, float* x) { state_.load(c, x); });
      });
    }
  }

  template <class Format>
  __device__ __forceinline__ uint8_t* state_row(const mpe_table& table, int64_t row) const {
    return static_cast<uint8_t*>(table.state) + row * Format::row_bytes(update_.dim());
  }

  const Update& update_;
  const Tile& tile_;
  RowFragment<kLong> weights_, grad_, state_;
  float row_state_ = 0.0f;
};

}  // namespace cuda
}  // namespace mpembed
