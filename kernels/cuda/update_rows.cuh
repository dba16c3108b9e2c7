// The kernels of the fused backward: a tile of lanes owns a row, eight columns a lane; weight,
// gradient and states stay in registers, or in workspace for long rows, which take several rounds.
#pragma once

#include "cuda/row_update.cuh"

namespace mpembed {
namespace cuda {

// Updates the unique rows of n lookups. Short and long rows are compiled in files of their own,
// because their kernels are many: one an optimizer.
mpe_status update_short_rows(const Update& update, const HotRows& hot, int32_t optimizer, int64_t n,
                             mpe_error* nonfinite, void* stream);
mpe_status update_long_rows(const Update& update, const HotRows& hot, int32_t optimizer, int64_t n,
                            mpe_error* nonfinite, void* stream);

namespace {

// Of n lookups' rows, for which there is scratch.
inline int64_t long_rows_at_once(int64_t n) {
  constexpr int64_t kMost = 1 << 14;
  return n < kMost ? n : kMost;
}
inline int64_t scratch_rows(int32_t optimizer, int64_t n) {
  const int rows =
      with_optimizer(optimizer, [](auto kind) { return kScratchRows<decltype(kind)>; });
  return rows * long_rows_at_once(n);
}

__device__ void report_nonfinite(mpe_error* error, const mpe_table& table, uint64_t key) {
  error->status = MPE_ERR_NONFINITE;
  atomic_min64(&error->value, static_cast<int64_t>(key));
  atomic_add64(&error->count, 1);
  count_stat(table, MPE_stat_nonfinite, 1);
}

// A unique row as a lane finds it: its place u among them, its table (-1 if there is no row), its
// slot or -1, and its gradient's address if it occurs once.
struct UniqueRow {
  uint64_t key;
  const float* grad;
  float factor;
  int32_t table, slot;
  uint32_t u;

  __device__ static UniqueRow find(const Update& update, uint32_t u, bool wanted) {
    UniqueRow row{0, nullptr, 0.0f, -1, -1, u};
    if (!wanted || u >= *update.unique.count) return row;
    row.key = update.unique.rows[u];
    const int64_t begin = update.unique.starts[u], end = update.unique.starts[u + 1];
    if (update.slots != nullptr) row.slot = update.slots[u];
    row.table = update.tables.find(row.key);
    if (end - begin > 1) return row;
    const Occurrence only = TableGradients(update, row.table).at(update.unique.positions[begin]);
    row.grad = only.row;
    row.factor = only.factor;
    return row;
  }
};

template <class Optimizer, bool kLong>
__device__ __forceinline__ void update_row(const Update& update, const HotRows& hot,
                                           const Tile& tile, float* scratch, const UniqueRow& found,
                                           mpe_error* nonfinite) {
  const mpe_table& table = update.tables.table[found.table];
  RowUpdate<Optimizer, kLong> step(update, tile, scratch, hot.stride);
  RowFragment<kLong>& gradient = step.gradient();
  const bool single = kModel || found.grad != nullptr;
  if (single) {
    each_chunk<kLong>(tile, update.dim(), [&](int32_t c) {
      float x[kChunk];
      load_floats(found.grad + c, update.dim() - c, x);
      gradient.save(c, x);
    });
  } else {
    const int64_t begin = update.unique.starts[found.u], end = update.unique.starts[found.u + 1];
    if (end - begin > kBlock) {
      add_partials(update, tile, hot, found.u, end - begin, gradient);
    } else {
      sum_block<1>(update, tile, found.table, begin, end, gradient);
    }
  }
  const int64_t row = static_cast<int64_t>(found.key) - table.base;
  if (!step.run(found.table, row, found.slot, single, found.factor) && tile.lane == 0) {
    report_nonfinite(nonfinite, table, found.key);
  }
}

// Blocks that a multiprocessor should hold: as many as the registers for states allow.
template <class Optimizer, bool kLong>
constexpr int blocks_of() {
  return kLong || kElementStates<Optimizer> > 1 ? 2 : 3;
}

// Rows from `first` on: the lanes of a tile find one row each, then the tile updates these rows one
// by one.
template <class Optimizer, bool kLong>
__global__ void __launch_bounds__(kThreads, (blocks_of<Optimizer, kLong>()))
    update_kernel(const __grid_constant__ Update update, HotRows hot, int32_t shift, int32_t rows,
                  uint32_t first, mpe_error* nonfinite) {
  const Tile tile(shift);
  const uint32_t u = first + static_cast<uint32_t>(tile.index() * rows + tile.lane);
  MPE_SHARED(UniqueRow, mine, kThreads);  // not in registers, which the steps of the rows need
  mine[threadIdx.x] = UniqueRow::find(update, u, tile.lane < rows);
  __syncwarp(tile.mask);
  float* scratch =
      kLong ? hot.scratch + tile.index() * kScratchRows<Optimizer> * hot.stride : nullptr;
  uint32_t lane = threadIdx.x - tile.lane;  // of the tile's lanes one by one
  do {
    const UniqueRow found = mine[lane];
    if (found.table < 0) return;  // the tile's later rows do not exist either
    update_row<Optimizer, kLong>(update, hot, tile, scratch, found, nonfinite);
  } while (++lane % tile.lanes() != 0);
}

// The partial sums of one block of a hot row.
template <bool kLong>
__global__ void partials_kernel(const __grid_constant__ Update update, HotRows hot, int32_t shift) {
  const Tile tile(shift);
  const int64_t i = tile.index();
  if (i >= *hot.blocks) return;
  const int64_t u = hot.block_row[i];
  const int64_t begin = update.unique.starts[u] + (i - hot.row_block[u]) * kBlock;
  const int64_t last = update.unique.starts[u + 1];
  const int64_t end = begin + kBlock < last ? begin + kBlock : last;
  float* sums = hot.sums + i * hot.stride;
  RowFragment<kLong> sum(sums);
  sum_block<kLong ? 1 : 4>(update, tile, update.tables.find(update.unique.rows[u]), begin, end,
                           sum);
  if (kLong) return;  // the sum was kept in `sums` all along
  each_chunk<kLong>(tile, update.dim(), [&](int32_t c) {
    float x[kChunk];
    sum.load(c, x);
    store_floats(sums + c, kChunk, x);
  });
}

// Rows that a tile updates: many, so that its lanes find many at once, but few enough that there
// are warps for the whole GPU.
inline int32_t rows_of_tile(int64_t n, int32_t shift) {
  constexpr int64_t kWarps = 4096;
  int32_t rows = 1 << shift;
  while (rows > 1 && (n << shift) / (rows * kWarp) < kWarps) rows /= 2;
  return rows;
}

template <bool kLong>
mpe_status update_rows(const Update& update, const HotRows& hot, int32_t optimizer, int64_t n,
                       mpe_error* nonfinite, void* stream) {
  const int64_t at_once = kLong ? long_rows_at_once(n) : n, hot_blocks = max_hot_blocks(n);
  const int32_t shift = tile_shift(update.tables.dim);
  if (hot_blocks > 0) {
    MPE_TRY(
        launch("update", stream, hot_blocks << shift, partials_kernel<kLong>, update, hot, shift));
  }
  return with_optimizer(optimizer, [&](auto kind) {
    using Optimizer = decltype(kind);
    const int32_t rows = kLong ? 1 : rows_of_tile(n, shift);
    for (int64_t first = 0; first < n; first += at_once) {
      const int64_t now = n - first < at_once ? n - first : at_once;
      MPE_TRY(launch("update", stream, ceil_div(now, rows) << shift,
                     update_kernel<Optimizer, kLong>, update, hot, shift, rows,
                     static_cast<uint32_t>(first), nonfinite));
    }
    return MPE_OK;
  });
}

}  // namespace
}  // namespace cuda
}  // namespace mpembed
