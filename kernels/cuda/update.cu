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

// One row's optimizer step. w, g and h are this lane's columns; false: non-finite, nothing written.
template <int W, int K>
class RowUpdate {
 public:
  __device__ RowUpdate(const Update& k, const Tile<W>& tile, float* scratch)
      : k_(k), tile_(tile), w_(scratch, 0, k), g_(scratch, 1, k), h_(scratch, 2, k) {}

  __device__ Columns<W, K>& gradient() { return g_; }

  __device__ bool run(const mpe_table& table, int64_t row, int64_t slot) {
    return with_format(table.precision, [&](auto f) {
      using F = typename decltype(f)::type;
      return with_optimizer(k_.optimizer.kind, [&](auto o) {
        return step<F, typename decltype(o)::type>(table, row, slot);
      });
    });
  }

 private:
  template <class Visit>
  __device__ void each(Visit visit) const {
    g_.each(tile_, k_.dim(), visit);
  }

  template <class F, class O>
  __device__ bool step(const mpe_table& table, int64_t row, int64_t slot) {
    uint8_t* stored = table.rows + row * F::row_bytes(k_.dim());
    float* cached = slot >= 0 ? k_.cache.rows + slot * k_.dim() : nullptr;
    load<F>(stored, cached);
    float state = 0.0f;
    if constexpr (O::kState == kStateRow) state = static_cast<const float*>(table.state)[row];
    if constexpr (O::kState == kStateElement) load_state(table, row);
    const OptimizerSettings o = k_.settings();
    each([&](int64_t i, int64_t) { apply_decay(o, &w_[i], &g_[i], 1); });
    if constexpr (O::kState == kStateRow) {
      float lane = 0.0f;
      each([&](int64_t i, int64_t) { lane = fmaf(g_[i], g_[i], lane); });
      const float scale = O::scale(o, tile_.fold(lane), &state, k_.dim());
      each([&](int64_t i, int64_t) { O::apply(scale, &w_[i], &g_[i], 1); });
    } else {
      each([&](int64_t i, int64_t) { O::step(o, &w_[i], &g_[i], &h_[i], 1); });
    }
    if (beyond<F, O>(table, state)) return false;
    store<F, O>(table, row, slot, stored, cached, state);
    return true;
  }

  template <class F>
  __device__ void load(const uint8_t* stored, const float* cached) {
    if (cached != nullptr) {
      each([&](int64_t i, int64_t c) { w_[i] = cached[c]; });
    } else {
      const RowReader<F> reader(stored, k_.dim());
      each([&](int64_t i, int64_t c) { w_[i] = reader(c); });
    }
  }

  __device__ uint8_t* state_row(const mpe_table& table, int64_t row) const {
    const int64_t bytes = table.state_format == MPE_format_bf16 ? 2 : 4;
    return static_cast<uint8_t*>(table.state) + row * k_.dim() * bytes;
  }
  __device__ void load_state(const mpe_table& table, int64_t row) {
    const uint8_t* from = state_row(table, row);
    with_state_format(table, [&](auto f) {
      const RowReader<typename decltype(f)::type> reader(from, k_.dim());
      each([&](int64_t i, int64_t c) { h_[i] = reader(c); });
    });
  }
  template <class Visit>
  __device__ static void with_state_format(const mpe_table& table, Visit visit) {
    if (table.state_format == MPE_format_bf16) {
      visit(TypeTag<Bf16>{});
    } else {
      visit(TypeTag<Fp32>{});
    }
  }

  static __device__ bool beyond_bits(float x, uint32_t bound) {
    return (float_bits(x) & 0x7FFFFFFFu) > bound;
  }
  template <class F, class O>
  __device__ bool beyond(const mpe_table& table, float state) const {
    bool bad = false;
    each([&](int64_t i, int64_t) { bad = bad || beyond_bits(w_[i], F::kMaxAbsBits); });
    if constexpr (O::kState == kStateRow) bad = bad || beyond_bits(state, Fp32::kMaxAbsBits);
    if constexpr (O::kState == kStateElement) {
      uint32_t bound = Fp32::kMaxAbsBits;
      if (table.state_format == MPE_format_bf16) bound = Bf16::kMaxAbsBits;
      each([&](int64_t i, int64_t) { bad = bad || beyond_bits(h_[i], bound); });
    }
    return tile_.any(bad);
  }

  template <class F, class O>
  __device__ void store(const mpe_table& table, int64_t row, int64_t slot, uint8_t* stored,
                        float* cached, float state) {
    if (cached != nullptr) {
      each([&](int64_t i, int64_t c) { cached[c] = w_[i]; });
      if (tile_.lane == 0) mark_dirty(k_.cache, slot);
    } else {
      write_row<F>(tile_, k_.rounding, kDomainRow, table, row, k_.dim(), stored,
                   [&](int64_t i) { return w_[i]; });
    }
    if constexpr (O::kState == kStateRow) {
      if (tile_.lane == 0) static_cast<float*>(table.state)[row] = state;
    }
    if constexpr (O::kState == kStateElement) {
      with_state_format(table, [&](auto f) {
        write_row<typename decltype(f)::type>(tile_, k_.rounding, kDomainState, table, row,
                                              k_.dim(), state_row(table, row),
                                              [&](int64_t i) { return h_[i]; });
      });
    }
  }

  const Update& k_;
  const Tile<W>& tile_;
  Columns<W, K> w_, g_, h_;
};

__device__ void report_nonfinite(mpe_error* error, const mpe_table& table, uint64_t key) {
  error->status = MPE_ERR_NONFINITE;
  atomic_min64(&error->value, static_cast<int64_t>(key));
  atomic_add64(&error->count, 1);
  count_stat(table, MPE_stat_nonfinite, 1);
}

// Rows [first, first + tiles of the grid).
template <int W, int K>
__global__ void update_kernel(Update k, Hot hot, int64_t first, mpe_error* nonfinite) {
  const Tile<W> tile;
  const int64_t tile_index = Tile<W>::index(), u = first + tile_index;
  if (u >= *k.unique.count) return;
  const uint64_t key = k.unique.rows[u];
  const int32_t t = k.tables.find(key);
  const mpe_table& table = k.tables.table[t];
  float* scratch = hot.scratch + tile_index * 3 * k.dim();
  RowUpdate<W, K> row(k, tile, scratch);
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
  return in_rounds<W>(n, at_once, stream, update_kernel<W, K>, k, hot, nonfinite);
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
