// One row's optimizer step by a tile: read, step, check, write.
#pragma once

#include "cuda/gradient.cuh"
#include "cuda/probe.cuh"
#include "cuda/tree.cuh"

namespace mpembed {
namespace cuda {

__device__ inline bool exceeds(float x, uint32_t bound) {
  return (float_bits(x) & 0x7FFFFFFFu) > bound;
}

// Calls visit for the format of element-wise state.
template <class Visit>
__device__ __forceinline__ void with_state_format(const mpe_table& table, Visit visit) {
  if (table.state_format == MPE_format_bf16) {
    visit(Bf16{});
  } else {
    visit(Fp32{});
  }
}

// One row's optimizer step. Formats differ in the reading and the writing alone, so that the step
// itself stands here once for all of them.
template <class O, bool kLong>
class RowUpdate {
 public:
  __device__ __forceinline__ RowUpdate(const Update& k, const Tile& tile, float* scratch,
                                       int64_t stride)
      : k_(k), tile_(tile), w_(scratch), g_(scratch + stride), h_(scratch + 2 * stride) {}

  __device__ __forceinline__ Part<kLong>& gradient() { return g_; }

  // False: non-finite, nothing written. The gradient is that of the only occurrence, still without
  // its factor, where there is one: so both loads are on their way at once.
  __device__ __forceinline__ bool run(const mpe_table& table, int64_t row, int64_t slot,
                                      bool single, float factor) {
    float* cached = slot >= 0 ? k_.cache.rows + slot * k_.dim() : nullptr;
    load(table, row, cached);
    if (single) multiply(factor);
    step();
    if (beyond(table)) return false;
    if (cached != nullptr) {
      each([&](int32_t c) {
        float w[kChunk];
        w_.load(c, w);
        store_floats(cached + c, k_.dim() - c, w);
      });
      if (tile_.lane == 0) mark_dirty(k_.cache, slot);
    } else {
      write_table_row<kLong>(tile_, k_.tables, k_.rounding, table, row,
                             [&](int32_t c, float* x) { w_.load(c, x); });
    }
    store_state(table, row);
    return true;
  }

 private:
  template <class Visit>
  __device__ __forceinline__ void each(Visit visit) const {
    each_chunk<kLong>(tile_, k_.dim(), visit);
  }

  __device__ __forceinline__ void load(const mpe_table& table, int64_t row, const float* cached) {
    if constexpr (O::kState == kStateRow) state_ = static_cast<const float*>(table.state)[row];
    each([&](int32_t c) {
      float w[kChunk];
      if (cached != nullptr) {
        load_floats(cached + c, k_.dim() - c, w);
      } else {
        read_table_chunk(k_.tables, table, row, c, w);
      }
      w_.save(c, w);
    });
    if constexpr (O::kState == kStateElement) {
      with_state_format(table, [&](auto f) {
        using F = decltype(f);
        each([&](int32_t c) {
          float h[kChunk];
          read_chunk<F>(state_row<F>(table, row), k_.dim(), c, k_.tables.grain, h);
          h_.save(c, h);
        });
      });
    }
  }

  __device__ __forceinline__ void multiply(float factor) {
    each([&](int32_t c) {
      float g[kChunk];
      g_.load(c, g);
      MPE_UNROLL
      for (int i = 0; i < kChunk; ++i) g[i] = fmaf(factor, g[i], 0.0f);
      fill_beyond(g, k_.dim() - c, 0.0f);
      g_.save(c, g);
    });
  }

  // Calls visit(w, g, h) for this lane's columns, which it may change.
  template <class Visit>
  __device__ __forceinline__ void change(Visit visit) {
    each([&](int32_t c) {
      float w[kChunk], g[kChunk], h[kChunk];
      w_.load(c, w);
      g_.load(c, g);
      if (O::kState == kStateElement) h_.load(c, h);
      visit(w, g, h);
      w_.save(c, w);
      g_.save(c, g);
      if (O::kState == kStateElement) h_.save(c, h);
    });
  }

  __device__ __forceinline__ void step() {
    const OptimizerSettings o = k_.settings();
    if constexpr (O::kState == kStateRow) {
      change([&](float* w, float* g, float*) { apply_decay(o, w, g, kChunk); });
      const float scale = O::scale(o, sum_of_squares(), &state_, k_.dim());
      change([&](float* w, float* g, float*) { O::apply(scale, w, g, kChunk); });
    } else {
      change([&](float* w, float* g, float* h) {
        apply_decay(o, w, g, kChunk);
        O::step(o, w, g, h, kChunk);
      });
    }
  }

  __device__ __forceinline__ float sum_of_squares() const {
    if constexpr (kLong) {
      SquaresTree<kWarp> tree(tile_);
      for (int32_t first = 0; first < k_.dim(); first += kRound) {
        const int32_t c = first + tile_.lane * kChunk;
        float g[kChunk] = {};
        if (c < k_.dim()) g_.load(c, g);
        tree.add(g);
      }
      return tree.fold();
    } else {
      return with_lanes(tile_, [&](auto lanes) {
        SquaresTree<decltype(lanes)::value> tree(tile_);
        float g[kChunk];
        g_.load(0, g);
        tree.add(g);
        return tree.fold();
      });
    }
  }

  __device__ __forceinline__ bool beyond(const mpe_table& table) const {
    const uint32_t bound =
        with_format(table.precision, [](auto f) { return decltype(f)::kMaxAbsBits; });
    bool bad = part_exceeds(w_, bound);
    if constexpr (O::kState == kStateRow) bad = bad || exceeds(state_, Fp32::kMaxAbsBits);
    if constexpr (O::kState == kStateElement) {
      with_state_format(
          table, [&](auto f) { bad = bad || part_exceeds(h_, decltype(f)::kMaxAbsBits); });
    }
    return tile_.any(bad);
  }

  __device__ __forceinline__ bool part_exceeds(const Part<kLong>& part, uint32_t bound) const {
    bool bad = false;
    each([&](int32_t c) {
      float x[kChunk];
      part.load(c, x);
      fill_beyond(x, k_.dim() - c, 0.0f);
      MPE_UNROLL
      for (int i = 0; i < kChunk; ++i) bad |= exceeds(x[i], bound);
    });
    return bad;
  }

  __device__ __forceinline__ void store_state(const mpe_table& table, int64_t row) {
    if constexpr (O::kState == kStateRow) {
      if (tile_.lane == 0) static_cast<float*>(table.state)[row] = state_;
    }
    if constexpr (O::kState == kStateElement) {
      with_state_format(table, [&](auto f) {
        using F = decltype(f);
        const Target to{k_.rounding.stream(kDomainState, table, row), state_row<F>(table, row),
                        k_.dim(), k_.tables.grain};
        write_row<F, kLong>(tile_, to, k_.rounding.stochastic(),
                            [&](int32_t c, float* x) { h_.load(c, x); });
      });
    }
  }

  template <class F>
  __device__ __forceinline__ uint8_t* state_row(const mpe_table& table, int64_t row) const {
    return static_cast<uint8_t*>(table.state) + row * F::row_bytes(k_.dim());
  }

  const Update& k_;
  const Tile& tile_;
  Part<kLong> w_, g_, h_;
  float state_ = 0.0f;
};

}  // namespace cuda
}  // namespace mpembed
