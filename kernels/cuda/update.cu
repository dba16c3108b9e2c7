// The fused backward: a row's gradient summed in the contract's order, then one optimizer step.
//
// A tile of lanes owns a row, eight columns a lane; weight, gradient and state stay in registers,
// or in workspace for rows that take several rounds.
#include "cuda/kernels.h"
#include "cuda/row_update.cuh"
#include "state_formats.h"

namespace mpembed {
namespace cuda {
namespace {

__device__ void report_nonfinite(mpe_error* error, const mpe_table& table, uint64_t key) {
  error->status = MPE_ERR_NONFINITE;
  atomic_min64(&error->value, static_cast<int64_t>(key));
  atomic_add64(&error->count, 1);
  count_stat(table, MPE_stat_nonfinite, 1);
}

// A unique row as a lane finds it: its table (-1 if there is no row), its slot or -1, and its
// gradient's address if it occurs once.
struct UniqueRow {
  uint64_t key;
  const float* grad;
  float factor;
  int32_t table, slot;

  __device__ static UniqueRow find(const Update& update, int64_t u, bool wanted) {
    UniqueRow row{0, nullptr, 0.0f, -1, -1};
    if (!wanted || u >= *update.unique.count) return row;
    row.key = update.unique.rows[u];
    const int64_t begin = update.unique.starts[u], end = update.unique.starts[u + 1];
    if (update.slots != nullptr) row.slot = update.slots[u];
    row.table = update.tables.find(row.key);
    if (end - begin > 1) return row;
    const mpe_table& table = update.tables.table[row.table];
    const Occurrence only(update, table, update.grad.of(table, row.table),
                          row.table * update.lookups.batch_size, update.unique.positions[begin]);
    row.grad = only.row;
    row.factor = only.factor;
    return row;
  }
  __device__ UniqueRow from(const Tile& tile, int lane) const {
    const uint64_t row = tile.shuffle(reinterpret_cast<uint64_t>(grad), lane);
    return UniqueRow{tile.shuffle(key, lane), reinterpret_cast<const float*>(row),
                     tile.shuffle(factor, lane), tile.shuffle(table, lane),
                     tile.shuffle(slot, lane)};
  }
};

template <class Optimizer, bool kLong>
__device__ __forceinline__ void update_row(const Update& update, const HotRows& hot,
                                           const Tile& tile, float* scratch, uint32_t u,
                                           const UniqueRow& found, mpe_error* nonfinite) {
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
    const int64_t begin = update.unique.starts[u], end = update.unique.starts[u + 1];
    if (end - begin > kBlock) {
      add_partials(update, tile, hot, u, end - begin, gradient);
    } else {
      sum_block<1>(update, tile, found.table, begin, end, gradient);
    }
  }
  const int64_t row = static_cast<int64_t>(found.key) - table.base;
  if (!step.run(table, row, found.slot, single, found.factor) && tile.lane == 0) {
    report_nonfinite(nonfinite, table, found.key);
  }
}

// Rows from `first` on: the lanes of a tile find one row each, then the tile updates these rows one
// by one.
template <class Optimizer, bool kLong>
__global__ void __launch_bounds__(kThreads, kLong ? 2 : 3)
    update_kernel(Update update, HotRows hot, int32_t shift, int32_t rows, uint32_t first,
                  mpe_error* nonfinite) {
  const Tile tile(shift);
  const uint32_t base = first + static_cast<uint32_t>(tile.index() * rows);
  const UniqueRow mine = UniqueRow::find(update, base + tile.lane, tile.lane < rows);
  float* scratch = kLong ? hot.scratch + tile.index() * 3 * hot.stride : nullptr;
  for (int i = 0; i < rows; ++i) {
    const UniqueRow found = mine.from(tile, i);
    if (found.table < 0) return;  // the tile's later rows do not exist either
    update_row<Optimizer, kLong>(update, hot, tile, scratch, base + i, found, nonfinite);
  }
}

// The partial sums of one block of a hot row.
template <bool kLong>
__global__ void partials_kernel(Update update, HotRows hot, int32_t shift) {
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

// Reserves consecutive blocks for each hot row. The order of the rows does not matter.
__global__ void hot_rows_kernel(Update update, HotRows hot) {
  const int64_t u = thread_index();
  if (u >= *update.unique.count) return;
  const int64_t n = update.unique.starts[u + 1] - update.unique.starts[u];
  if (n <= kBlock) return;
  const int32_t blocks = static_cast<int32_t>((n + kBlock - 1) / kBlock);
  const int32_t first = atomicAdd(hot.blocks, blocks);
  hot.row_block[u] = first;
  for (int32_t i = 0; i < blocks; ++i) hot.block_row[first + i] = static_cast<int32_t>(u);
}

// Rows that a tile updates: many, so that its lanes find many at once, but few enough that there
// are warps for the whole GPU.
int32_t rows_of_tile(int64_t n, int32_t shift) {
  constexpr int64_t kWarps = 4096;
  int32_t rows = 1 << shift;
  while (rows > 1 && (n << shift) / (rows * kWarp) < kWarps) rows /= 2;
  return rows;
}

template <bool kLong>
mpe_status run(const Update& update, int64_t n, mpe_error* nonfinite, void* stream) {
  constexpr int64_t kScratchRows = 1 << 14;  // long rows that are updated at once
  const int64_t at_once = kLong && n > kScratchRows ? kScratchRows : n;
  const int64_t hot_blocks = max_hot_blocks(n), stride = whole_chunks(update.tables.dim);
  const int32_t shift = tile_shift(update.tables.dim);
  Workspace<int32_t> blocks(stream);
  Workspace<float> sums(stream), scratch(stream);
  MPE_TRY(blocks.acquire(1 + n + hot_blocks, "update"));
  MPE_TRY(sums.acquire(hot_blocks * stride, "update"));
  if (kLong) MPE_TRY(scratch.acquire(at_once * 3 * stride, "update"));
  int32_t* count = blocks.get();
  const HotRows hot{count, count + 1, count + 1 + n, sums.get(), scratch.get(), stride};
  if (hot_blocks > 0) {
    MPE_TRY(fill(count, 0, sizeof(int32_t), stream));
    MPE_TRY(launch("update", stream, n, hot_rows_kernel, update, hot));
    MPE_TRY(
        launch("update", stream, hot_blocks << shift, partials_kernel<kLong>, update, hot, shift));
  }
  const int32_t rows = kLong ? 1 : rows_of_tile(n, shift);
  return with_optimizer(update.optimizer.kind, [&](auto optimizer) {
    using Optimizer = decltype(optimizer);
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

mpe_status update(const mpe_group* group, const mpe_optimizer* optimizer,
                  const mpe_lookups* lookups, const mpe_unique* unique, const int32_t* slots,
                  const mpe_outputs* grad, mpe_error* nonfinite, void* stream) {
  MPE_TRY(check_state_formats(*group, *optimizer));
  const mpe_cache cache = group->cache != nullptr ? *group->cache : mpe_cache{};
  const Update update{Tables(*group), Rounding(*group), cache, *optimizer,
                      *lookups,       *unique,          slots, Outputs{*grad}};
  return with_rounds(group->dim, [&](auto rounds) {
    return run<decltype(rounds)::value>(update, lookups->n, nonfinite, stream);
  });
}

}  // namespace cuda
}  // namespace mpembed
