// The fused backward: a row's gradient summed in the contract's order, then one optimizer step.
//
// A tile of lanes owns a row, eight columns a lane; weight, gradient and state stay in registers,
// or in workspace for rows that take several rounds.
#include "cuda/kernels.h"
#include "cuda/row_update.cuh"

namespace mpembed {
namespace cuda {
namespace {

__device__ void report_nonfinite(mpe_error* error, const mpe_table& table, uint64_t key) {
  error->status = MPE_ERR_NONFINITE;
  atomic_min64(&error->value, static_cast<int64_t>(key));
  atomic_add64(&error->count, 1);
  count_stat(table, MPE_stat_nonfinite, 1);
}

// A unique row, as a lane finds it: its table (-1: no row), its slot or -1, and where its gradient
// lies if it occurs once.
struct Found {
  uint64_t key;
  const float* grad;
  float factor;
  int32_t table, slot;

  __device__ static Found find(const Update& k, int64_t u, bool wanted) {
    Found f{0, nullptr, 0.0f, -1, -1};
    if (!wanted || u >= *k.unique.count) return f;
    f.key = k.unique.rows[u];
    const int64_t begin = k.unique.starts[u], end = k.unique.starts[u + 1];
    if (k.slots != nullptr) f.slot = k.slots[u];
    f.table = k.tables.find(f.key);
    if (end - begin > 1) return f;
    const mpe_table& table = k.tables.table[f.table];
    const Occurrence only(k, table, k.grad.of(table, f.table), f.table * k.l.batch_size,
                          k.unique.positions[begin]);
    f.grad = only.row;
    f.factor = only.factor;
    return f;
  }
  __device__ Found from(const Tile& tile, int lane) const {
    const uint64_t row = tile.shuffle(reinterpret_cast<uint64_t>(grad), lane);
    return Found{tile.shuffle(key, lane), reinterpret_cast<const float*>(row),
                 tile.shuffle(factor, lane), tile.shuffle(table, lane), tile.shuffle(slot, lane)};
  }
};

template <class O, bool kLong>
__device__ __forceinline__ void update_row(const Update& k, const Hot& hot, const Tile& tile,
                                           float* scratch, uint32_t u, const Found& found,
                                           mpe_error* nonfinite) {
  const mpe_table& table = k.tables.table[found.table];
  RowUpdate<O, kLong> row(k, tile, scratch, hot.stride);
  Part<kLong>& gradient = row.gradient();
  const bool single = kModel || found.grad != nullptr;
  if (single) {
    each_chunk<kLong>(tile, k.dim(), [&](int32_t c) {
      float x[kChunk];
      load_floats(found.grad + c, k.dim() - c, x);
      gradient.save(c, x);
    });
  } else {
    const int64_t begin = k.unique.starts[u], end = k.unique.starts[u + 1];
    if (end - begin > kBlock) {
      add_partials(k, tile, hot, u, end - begin, gradient);
    } else {
      sum_block<1>(k, tile, found.table, begin, end, gradient);
    }
  }
  const int64_t number = static_cast<int64_t>(found.key) - table.base;
  if (!row.run(table, number, found.slot, single, found.factor) && tile.lane == 0) {
    report_nonfinite(nonfinite, table, found.key);
  }
}

// Rows from `first` on: a tile finds so many, a lane each, and updates them one after the other.
template <class O, bool kLong>
__global__ void __launch_bounds__(kThreads, kLong ? 2 : 3)
    update_kernel(Update k, Hot hot, int32_t shift, int32_t rows, uint32_t first,
                  mpe_error* nonfinite) {
  const Tile tile(shift);
  const uint32_t base = first + static_cast<uint32_t>(tile.index() * rows);
  const Found mine = Found::find(k, base + tile.lane, tile.lane < rows);
  float* scratch = kLong ? hot.scratch + tile.index() * 3 * hot.stride : nullptr;
  for (int i = 0; i < rows; ++i) {
    const Found found = mine.from(tile, i);
    if (found.table < 0) return;  // so are the tile's others
    update_row<O, kLong>(k, hot, tile, scratch, base + i, found, nonfinite);
  }
}

// The partial sums of one block of a hot row.
template <bool kLong>
__global__ void partials_kernel(Update k, Hot hot, int32_t shift) {
  const Tile tile(shift);
  const int64_t i = tile.index();
  if (i >= *hot.blocks) return;
  const int64_t u = hot.block_row[i];
  const int64_t begin = k.unique.starts[u] + (i - hot.row_block[u]) * kBlock;
  const int64_t last = k.unique.starts[u + 1];
  const int64_t end = begin + kBlock < last ? begin + kBlock : last;
  float* sums = hot.sums + i * hot.stride;
  Part<kLong> sum(sums);
  sum_block<kLong ? 1 : 4>(k, tile, k.tables.find(k.unique.rows[u]), begin, end, sum);
  if (kLong) return;  // summed where it belongs
  each_chunk<kLong>(tile, k.dim(), [&](int32_t c) {
    float x[kChunk];
    sum.load(c, x);
    store_floats(sums + c, kChunk, x);
  });
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

// Rows of a tile: many, to find many at once, but no more than keep a GPU's warps busy.
int32_t rows_of_tile(int64_t n, int32_t shift) {
  constexpr int64_t kWarps = 4096;
  int32_t rows = 1 << shift;
  while (rows > 1 && (n << shift) / (rows * kWarp) < kWarps) rows /= 2;
  return rows;
}

template <bool kLong>
mpe_status run(const Update& k, int64_t n, mpe_error* nonfinite, void* stream) {
  constexpr int64_t kScratchRows = 1 << 14;  // of long rows at once
  const int64_t at_once = kLong && n > kScratchRows ? kScratchRows : n;
  const int64_t hot_blocks = max_hot_blocks(n), stride = whole_chunks(k.tables.dim);
  const int32_t shift = tile_shift(k.tables.dim);
  Workspace<int32_t> places(stream);
  Workspace<float> sums(stream), scratch(stream);
  MPE_TRY(places.take(1 + n + hot_blocks, "update"));
  MPE_TRY(sums.take(hot_blocks * stride, "update"));
  if (kLong) MPE_TRY(scratch.take(at_once * 3 * stride, "update"));
  int32_t* p = places.get();
  const Hot hot{p, p + 1, p + 1 + n, sums.get(), scratch.get(), stride};
  if (hot_blocks > 0) {
    MPE_TRY(fill(p, 0, sizeof(int32_t), stream));
    MPE_TRY(launch("update", stream, n, hot_rows_kernel, k, hot));
    MPE_TRY(launch("update", stream, hot_blocks << shift, partials_kernel<kLong>, k, hot, shift));
  }
  const int32_t rows = kLong ? 1 : rows_of_tile(n, shift);
  return with_optimizer(k.optimizer.kind, [&](auto o) {
    using O = decltype(o);
    for (int64_t first = 0; first < n; first += at_once) {
      const int64_t now = n - first < at_once ? n - first : at_once;
      MPE_TRY(launch("update", stream, ceil_div(now, rows) << shift, update_kernel<O, kLong>, k,
                     hot, shift, rows, static_cast<uint32_t>(first), nonfinite));
    }
    return MPE_OK;
  });
}

}  // namespace

mpe_status update(const mpe_group* g, const mpe_optimizer* o, const mpe_lookups* l,
                  const mpe_unique* u, const int32_t* slots, const mpe_outputs* grad,
                  mpe_error* nonfinite, void* stream) {
  const mpe_cache cache = g->cache != nullptr ? *g->cache : mpe_cache{};
  const Update k{Tables(*g), Rounding(*g), cache, *o, *l, *u, slots, Outputs{*grad}};
  return with_rounds(g->dim, [&](auto rounds) {
    return run<decltype(rounds)::value>(k, l->n, nonfinite, stream);
  });
}

}  // namespace cuda
}  // namespace mpembed
