// The fused backward: a row's gradient summed in the contract's order, then one optimizer step.
//
// A tile of lanes owns a row; weight, gradient and state stay in registers, K columns a lane, or in
// workspace for rows longer than 32 * kMaxColumns.
#include "cuda/gradient.cuh"
#include "cuda/kernels.h"
#include "cuda/probe.cuh"
#include "cuda/row.cuh"

namespace mpembed {
namespace cuda {
namespace {

__device__ inline bool exceeds(float x, uint32_t bound) {
  return (float_bits(x) & 0x7FFFFFFFu) > bound;
}

// Calls visit for the format of element-wise state.
template <class Visit>
__device__ __forceinline__ void with_state_format(const mpe_table& table, Visit visit) {
  if (table.state_format == MPE_format_bf16) {
    visit(TypeTag<Bf16>{});
  } else {
    visit(TypeTag<Fp32>{});
  }
}

// One row's optimizer step. w, g and h are this lane's columns. Formats differ in the reading and
// the writing alone, so that the step itself stands here once for all of them.
template <class O, int W, int K>
class RowUpdate {
 public:
  __device__ __forceinline__ RowUpdate(const Update& k, const Tile<W>& tile, float* scratch)
      : k_(k), tile_(tile), w_(scratch, 0, k), g_(scratch, 1, k), h_(scratch, 2, k) {}

  __device__ __forceinline__ Columns<W, K>& gradient() { return g_; }

  // False: non-finite, nothing written.
  __device__ __forceinline__ bool run(const mpe_table& table, int64_t row, int64_t slot) {
    float* cached = slot >= 0 ? k_.cache.rows + slot * k_.dim() : nullptr;
    load(table, row, cached);
    step();
    if (beyond(table)) return false;
    if (cached != nullptr) {
      each([&](int64_t i, int64_t c) { cached[c] = w_[i]; });
      if (tile_.lane == 0) mark_dirty(k_.cache, slot);
    } else {
      store(table, row);
    }
    store_state(table, row);
    return true;
  }

 private:
  template <class Visit>
  __device__ __forceinline__ void each(Visit visit) const {
    g_.each(tile_, k_.dim(), visit);
  }

  __device__ __forceinline__ void load(const mpe_table& table, int64_t row, const float* cached) {
    if (cached != nullptr) {
      each([&](int64_t i, int64_t c) { w_[i] = cached[c]; });
    } else {
      with_format(table.precision, [&](auto f) {
        using F = typename decltype(f)::type;
        const RowReader<F> reader(table.rows + row * F::row_bytes(k_.dim()), k_.dim());
        each([&](int64_t i, int64_t c) { w_[i] = reader(c); });
      });
    }
    if constexpr (O::kState == kStateRow) state_ = static_cast<const float*>(table.state)[row];
    if constexpr (O::kState == kStateElement) {
      with_state_format(table, [&](auto f) {
        using F = typename decltype(f)::type;
        const RowReader<F> reader(state_row<F>(table, row), k_.dim());
        each([&](int64_t i, int64_t c) { h_[i] = reader(c); });
      });
    }
  }

  __device__ __forceinline__ void step() {
    const OptimizerSettings o = k_.settings();
    each([&](int64_t i, int64_t) { apply_decay(o, &w_[i], &g_[i], 1); });
    if constexpr (O::kState == kStateRow) {
      float lane = 0.0f;
      each([&](int64_t i, int64_t) { lane = fmaf(g_[i], g_[i], lane); });
      const float scale = O::scale(o, tile_.fold(lane), &state_, k_.dim());
      each([&](int64_t i, int64_t) { O::apply(scale, &w_[i], &g_[i], 1); });
    } else if constexpr (O::kState == kStateElement) {
      each([&](int64_t i, int64_t) { O::step(o, &w_[i], &g_[i], &h_[i], 1); });
    } else {
      each([&](int64_t i, int64_t) { O::step(o, &w_[i], &g_[i], nullptr, 1); });
    }
  }

  __device__ __forceinline__ bool beyond(const mpe_table& table) const {
    const uint32_t bound =
        with_format(table.precision, [](auto f) { return decltype(f)::type::kMaxAbsBits; });
    bool bad = false;
    each([&](int64_t i, int64_t) { bad = bad || exceeds(w_[i], bound); });
    if constexpr (O::kState == kStateRow) bad = bad || exceeds(state_, Fp32::kMaxAbsBits);
    if constexpr (O::kState == kStateElement) {
      with_state_format(table, [&](auto f) {
        using F = typename decltype(f)::type;
        each([&](int64_t i, int64_t) { bad = bad || exceeds(h_[i], F::kMaxAbsBits); });
      });
    }
    return tile_.any(bad);
  }

  __device__ __forceinline__ void store(const mpe_table& table, int64_t row) {
    with_format(table.precision, [&](auto f) {
      using F = typename decltype(f)::type;
      write_row<F, K>(tile_, k_.rounding, kDomainRow, table, row, k_.dim(),
                      table.rows + row * F::row_bytes(k_.dim()), [&](int64_t i) { return w_[i]; });
    });
  }

  __device__ __forceinline__ void store_state(const mpe_table& table, int64_t row) {
    if constexpr (O::kState == kStateRow) {
      if (tile_.lane == 0) static_cast<float*>(table.state)[row] = state_;
    }
    if constexpr (O::kState == kStateElement) {
      with_state_format(table, [&](auto f) {
        using F = typename decltype(f)::type;
        write_row<F, K>(tile_, k_.rounding, kDomainState, table, row, k_.dim(),
                        state_row<F>(table, row), [&](int64_t i) { return h_[i]; });
      });
    }
  }

  template <class F>
  __device__ __forceinline__ uint8_t* state_row(const mpe_table& table, int64_t row) const {
    return static_cast<uint8_t*>(table.state) + row * F::row_bytes(k_.dim());
  }

  const Update& k_;
  const Tile<W>& tile_;
  Columns<W, K> w_, g_, h_;
  float state_ = 0.0f;
};

__device__ void report_nonfinite(mpe_error* error, const mpe_table& table, uint64_t key) {
  error->status = MPE_ERR_NONFINITE;
  atomic_min64(&error->value, static_cast<int64_t>(key));
  atomic_add64(&error->count, 1);
  count_stat(table, MPE_stat_nonfinite, 1);
}

// Rows [first, first + tiles of the grid).
template <class O, int W, int K>
__global__ void update_kernel(Update k, Hot hot, int64_t first, mpe_error* nonfinite) {
  const Tile<W> tile;
  const int64_t tile_index = Tile<W>::index(), u = first + tile_index;
  if (u >= *k.unique.count) return;
  const uint64_t key = k.unique.rows[u];
  const int32_t t = k.tables.find(key);
  const mpe_table& table = k.tables.table[t];
  float* scratch = hot.scratch + tile_index * 3 * k.dim();
  RowUpdate<O, W, K> row(k, tile, scratch);
  const int64_t begin = k.unique.starts[u], end = k.unique.starts[u + 1];
  if (end - begin > kBlock) {
    add_partials(k, tile, hot, u, end - begin, row.gradient());
  } else {
    sum_block(k, tile, t, begin, end, row.gradient());
  }
  const int64_t slot = k.slots != nullptr ? k.slots[u] : -1;
  if (!row.run(table, static_cast<int64_t>(key) - table.base, slot) && tile.lane == 0) {
    report_nonfinite(nonfinite, table, key);
  }
}

// The partial sums of one block of a hot row.
template <int W, int K>
__global__ void partials_kernel(Update k, Hot hot, int64_t first) {
  const Tile<W> tile;
  const int64_t tile_index = Tile<W>::index(), i = first + tile_index;
  if (i >= *hot.blocks) return;
  const int64_t u = hot.block_row[i];
  const int64_t begin = k.unique.starts[u] + (i - hot.row_block[u]) * kBlock;
  const int64_t last = k.unique.starts[u + 1];
  const int64_t end = begin + kBlock < last ? begin + kBlock : last;
  Columns<W, K> sum(hot.sums, i, k);
  sum_block(k, tile, k.tables.find(k.unique.rows[u]), begin, end, sum);
  if (K == 0) return;  // summed where it belongs
  sum.each(tile, k.dim(), [&](int64_t j, int64_t c) { hot.sums[i * k.dim() + c] = sum[j]; });
}

// Reserves consecutive blocks for each hot row; in which order does not matter.
__global__ void hot_rows_kernel(Update k, Hot hot) {
  const int64_t u = thread_index();
  if (u >= *k.unique.count) return;
  const int64_t n = k.unique.starts[u + 1] - k.unique.starts[u];
  if (n <= kBlock) return;
  const int32_t blocks = static_cast<int32_t>((n + kBlock - 1) / kBlock);
  const int32_t first = atomicAdd(hot.blocks, blocks);
  hot.row_block[u] = first;
  for (int32_t i = 0; i < blocks; ++i) hot.block_row[first + i] = static_cast<int32_t>(u);
}

// Launches kernel on `tiles` tiles, in rounds where each tile needs scratch of its own.
template <int W, class... Parameters, class... Arguments>
mpe_status in_rounds(int64_t tiles, int64_t at_once, void* stream, void (*kernel)(Parameters...),
                     const Update& k, const Hot& hot, Arguments... arguments) {
  for (int64_t first = 0; first < tiles; first += at_once) {
    const int64_t now = tiles - first < at_once ? tiles - first : at_once;
    MPE_TRY(launch("update", stream, now * W, kernel, k, hot, first, arguments...));
  }
  return MPE_OK;
}

template <int W, int K>
mpe_status run(const Update& k, int64_t n, mpe_error* nonfinite, void* stream) {
  constexpr int64_t kScratchRows = 1 << 14;
  const int64_t at_once = K == 0 ? kScratchRows : n;
  const int64_t hot_blocks = max_hot_blocks(n);
  Workspace<int32_t> places(stream);
  Workspace<float> sums(stream), scratch(stream);
  MPE_TRY(places.take(1 + n + hot_blocks, "update"));
  MPE_TRY(sums.take(hot_blocks * k.tables.dim, "update"));
  if (K == 0) {
    const int64_t rows = n < at_once ? n : at_once;
    MPE_TRY(scratch.take(rows * 3 * k.tables.dim, "update"));
  }
  int32_t* p = places.get();
  const Hot hot{p, p + 1, p + 1 + n, sums.get(), scratch.get()};
  if (hot_blocks > 0) {
    MPE_TRY(fill(p, 0, sizeof(int32_t), stream));
    MPE_TRY(launch("update", stream, n, hot_rows_kernel, k, hot));
    MPE_TRY(in_rounds<W>(hot_blocks, hot_blocks, stream, partials_kernel<W, K>, k, hot));
  }
  return with_optimizer(k.optimizer.kind, [&](auto o) {
    using O = typename decltype(o)::type;
    return in_rounds<W>(n, at_once, stream, update_kernel<O, W, K>, k, hot, nonfinite);
  });
}

}  // namespace

mpe_status update(const mpe_group* g, const mpe_optimizer* o, const mpe_lookups* l,
                  const mpe_unique* u, const int32_t* slots, const mpe_outputs* grad,
                  mpe_error* nonfinite, void* stream) {
  const mpe_cache cache = g->cache != nullptr ? *g->cache : mpe_cache{};
  const Update k{Tables(*g), Rounding(*g), cache, *o, *l, *u, slots, Outputs{*grad}};
  const auto columns = [&](auto width, auto count) {
    constexpr int W = decltype(width)::value, K = decltype(count)::value;
    return run<W, K>(k, l->n, nonfinite, stream);
  };
  using std::integral_constant;
  return with_width(g->dim, [&](auto width) {
    constexpr int W = decltype(width)::value;
    if constexpr (W < kWarp) {
      return columns(width, integral_constant<int, 1>{});
    } else {
      if (g->dim <= 32) return columns(width, integral_constant<int, 1>{});
      if (g->dim <= 64) return columns(width, integral_constant<int, 2>{});
      if (g->dim <= 128) return columns(width, integral_constant<int, 4>{});
      if (g->dim <= 256) return columns(width, integral_constant<int, 8>{});
      return columns(width, integral_constant<int, 0>{});
    }
  });
}

}  // namespace cuda
}  // namespace mpembed
