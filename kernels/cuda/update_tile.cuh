// The step of the fused backward on the device: a tile of lanes owns a row, eight columns a lane;
// weight, gradient and states stay in registers, or in workspace for long rows, which take several
// rounds.
#pragma once

#include "cuda/row_update.cuh"

namespace mpembed {
namespace cuda {
namespace {

__device__ void report_nonfinite(mpe_error* error, const mpe_table& table, int64_t row) {
  error->status = MPE_ERR_NONFINITE;
  atomic_min64(&error->value, table.base + row);
  atomic_add64(&error->count, 1);
  count_stat(table, MPE_stat_nonfinite, 1);
}

// A unique row as a lane finds it: its place u among them, its table (-1 if there is no row) and
// number in it, its slot or -1, whether it is read in its table, and its gradient's address if it
// occurs once.
struct UniqueRow {
  int64_t row;
  const uint8_t* grad;
  float factor;
  int32_t table, slot;
  uint32_t u;
  bool in_table;

  __device__ static UniqueRow find(const Update& update, uint32_t u, bool wanted) {
    UniqueRow row{0, nullptr, 0.0f, -1, -1, u, true};
    if (!wanted || u >= *update.unique.count) return row;
    const uint64_t key = update.unique.rows[u];
    const int64_t begin = update.unique.starts[u], end = update.unique.starts[u + 1];
    if (update.slots != nullptr) row.slot = update.slots[u];
    row.in_table = row.slot < 0 || update.is_unchanged(u);
    row.table = update.tables.find(key);
    row.row = static_cast<int64_t>(key) - update.tables.table[row.table].base;
    if (end - begin > 1) return row;
    const Occurrence only = TableGradients(update, row.table).at(update.unique.positions[begin]);
    row.grad = only.row;
    row.factor = only.factor;
    return row;
  }
};

// Blocks that a multiprocessor should hold: as many as the registers for states allow.
// From compute capability 10 on, the compiler takes more of them.
template <class Optimizer, bool kLong>
constexpr int blocks_of() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
  if (Optimizer::kNumStates > 1) return 2;
#endif
  return kLong || kElementStates<Optimizer> > 1 ? 2 : 3;
}

// Gradients that are added to a row's at once, as many as the registers of these blocks allow.
template <class Optimizer, bool kLong>
constexpr int kGradientsAtOnce = kLong                                ? 1
                                 : blocks_of<Optimizer, kLong>() == 2 ? 4
                                 : Optimizer::kNumStates == 0         ? 2
                                                                      : 1;

template <class Optimizer, bool kLong>
__device__ __forceinline__ void update_row(const Update& update, const HotRows& hot,
                                           const Tile& tile, float* scratch, const UniqueRow* mine,
                                           mpe_error* nonfinite) {
  const UniqueRow& found = *mine;  // in shared memory, and so not in registers all along
  RowUpdate<Optimizer, kLong> step(update, tile, scratch, hot.stride);
  RowFragment<kLong>& gradient = step.gradient();
  const bool single = kModel || found.grad != nullptr;
  if (single) {
    each_chunk<kLong>(tile, update.dim(), [&](int32_t c) {
      GradientChunk grad;
      grad.load(found.grad, update.batches.format, c, update.dim());
      grad.decode(update.batches.format);
      gradient.save(c, grad.x);
    });
  } else {
    const uint32_t begin = static_cast<uint32_t>(update.unique.starts[found.u]);
    const uint32_t end = static_cast<uint32_t>(update.unique.starts[found.u + 1]);
    if (end - begin > kBlock) {
      add_partials(update, tile, hot, found.u, end - begin, gradient);
    } else {
      sum_block<kGradientsAtOnce<Optimizer, kLong>>(update, tile, found.table, begin, end,
                                                    gradient);
    }
  }
  const bool finite =
      step.run(found.table, found.row, found.slot, found.in_table, single, found.factor);
  if (!finite && !kModel && tile.lane == 0) {
    report_nonfinite(nonfinite, update.tables.table[found.table], found.row);
  }
}

// Updates rows from `first` on: the lanes of a tile find one row each, then the tile updates these
// rows one by one.
template <class Optimizer, bool kLong>
__device__ __forceinline__ void update_tile(const Update& update, const HotRows& hot, int32_t shift,
                                            int32_t rows, uint32_t first, mpe_error* nonfinite) {
  const Tile tile(shift);
  const uint32_t u = first + static_cast<uint32_t>(tile.index() * rows + tile.lane);
  MPE_SHARED(UniqueRow, mine, kThreads);  // not in registers, which the steps of the rows need
  mine[threadIdx.x] = UniqueRow::find(update, u, tile.lane < rows);
  __syncwarp(tile.mask);
  float* scratch =
      kLong ? hot.scratch + tile.index() * kScratchRows<Optimizer> * hot.stride : nullptr;
  uint32_t lane = threadIdx.x - tile.lane;  // of the tile's lanes one by one
  do {
    if (mine[lane].table < 0) return;  // the tile's later rows do not exist either
    update_row<Optimizer, kLong>(update, hot, tile, scratch, mine + lane, nonfinite);
  } while (++lane % tile.lanes() != 0);
}

}  // namespace
}  // namespace cuda
}  // namespace mpembed
