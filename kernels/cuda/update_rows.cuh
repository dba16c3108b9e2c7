// The kernels of the fused backward and their launchers.
#pragma once

#include "cuda/own_kernels.h"
#include "cuda/update_tile.cuh"

namespace mpembed {
namespace cuda {

// Updates the unique rows of n lookups. Short and long rows are compiled in files of their own,
// because their kernels are many: one an optimizer. own: the kernels of one of the user's own, or
// NULL.
mpe_status update_short_rows(const Update& update, const HotRows& hot, int32_t optimizer,
                             const OwnKernels* own, int64_t n, mpe_error* nonfinite, void* stream);
mpe_status update_long_rows(const Update& update, const HotRows& hot, int32_t optimizer,
                            const OwnKernels* own, int64_t n, mpe_error* nonfinite, void* stream);

namespace {

// Of n lookups' rows, for which there is scratch.
inline int64_t long_rows_at_once(int64_t n) {
  constexpr int64_t kMost = 1 << 14;
  return n < kMost ? n : kMost;
}

template <class Optimizer, bool kLong>
__global__ void __launch_bounds__(kThreads, (blocks_of<Optimizer, kLong>()))
    update_kernel(const __grid_constant__ Update update, HotRows hot, int32_t shift, int32_t rows,
                  uint32_t first, mpe_error* nonfinite) {
  update_tile<Optimizer, kLong>(update, hot, shift, rows, first, nonfinite);
}

// The partial sums of one block of a hot row.
template <bool kLong>
__global__ void __launch_bounds__(kThreads, 3)
    partials_kernel(const __grid_constant__ Update update, HotRows hot, int32_t shift) {
  const Tile tile(shift);
  const int64_t i = tile.index();
  if (i >= *hot.blocks) return;
  const int64_t u = hot.block_row[i];
  const int64_t begin = update.unique.starts[u] + (i - hot.row_block[u]) * kBlock;
  const int64_t last = update.unique.starts[u + 1];
  const int64_t end = begin + kBlock < last ? begin + kBlock : last;
  float* sums = hot.sums + i * hot.stride;
  RowFragment<kLong> sum(sums);
  sum_block<kLong ? 1 : 4>(update, tile, update.tables.find(update.unique.rows[u]),
                           static_cast<uint32_t>(begin), static_cast<uint32_t>(end), sum);
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
mpe_status update_rows(const Update& update, const HotRows& hot, int32_t optimizer,
                       const OwnKernels* own, int64_t n, mpe_error* nonfinite, void* stream) {
  const int64_t at_once = kLong ? long_rows_at_once(n) : n, hot_blocks = max_hot_blocks(n);
  const int32_t shift = tile_shift(update.tables.dim);
  if (hot_blocks > 0) {
    MPE_TRY(
        launch("update", stream, hot_blocks << shift, partials_kernel<kLong>, update, hot, shift));
  }
  // launch_rows(threads, rows, first): the kernel on rows from `first` on, so many a tile.
  const auto run = [&](auto launch_rows) {
    const int32_t rows = kLong ? 1 : rows_of_tile(n, shift);
    for (int64_t first = 0; first < n; first += at_once) {
      const int64_t now = n - first < at_once ? n - first : at_once;
      MPE_TRY(launch_rows(ceil_div(now, rows) << shift, rows, static_cast<uint32_t>(first)));
    }
    return MPE_OK;
  };
  if (own != nullptr) {
    return run([&](int64_t threads, int32_t rows, uint32_t first) {
      return own->update.launch(stream, threads, update, hot, shift, rows, first, nonfinite);
    });
  }
  return with_optimizer(optimizer, [&](auto kind) {
    using Optimizer = decltype(kind);
    return run([&](int64_t threads, int32_t rows, uint32_t first) {
      return launch("update", stream, threads, update_kernel<Optimizer, kLong>, update, hot, shift,
                    rows, first, nonfinite);
    });
  });
}

}  // namespace
}  // namespace cuda
}  // namespace mpembed
