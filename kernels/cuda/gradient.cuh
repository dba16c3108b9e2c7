// A row's gradient: occurrences in input order, in blocks of 64 whose partial sums are added in
// order (docs/numerics.md, section 5).
#pragma once

#include "cuda/row.cuh"

namespace mpembed {
namespace cuda {

constexpr int64_t kBlock = MPE_GRADIENT_BLOCK;

struct Update {
  Tables tables;
  Rounding rounding;
  mpe_cache cache;
  mpe_optimizer optimizer;
  mpe_lookups lookups;
  mpe_unique unique;
  const int32_t* slots;  // one per unique row, or NULL
  Outputs grad;

  __device__ int32_t dim() const { return tables.dim; }
  __device__ OptimizerSettings settings() const {
    const float lr = optimizer.device_lr != nullptr ? *optimizer.device_lr : optimizer.lr;
    return OptimizerSettings{lr, optimizer.eps, optimizer.weight_decay, optimizer.decay_mode};
  }
};

// The rows with more than one block of occurrences: row u has consecutive blocks, of which
// row_block[u] is the first.
struct HotRows {
  int32_t* blocks;     // their number
  int32_t* row_block;  // one per unique row
  int32_t* block_row;  // the unique row of each block
  float* sums;         // one row per block, in whole chunks
  float* scratch;      // three rows per tile, for long rows
  int64_t stride;      // of the rows of sums and scratch
};

// An upper bound of the blocks: a hot row has at least 65 occurrences, so there are at most n / 65.
inline int64_t max_hot_blocks(int64_t n) { return n <= kBlock ? 0 : n / kBlock + n / (kBlock + 1); }

// The gradient of one occurrence, and the factor it is multiplied with.
struct Occurrence {
  const float* row;
  float factor;

  __device__ Occurrence(const Update& update, const mpe_table& table, const mpe_matrix& grads,
                        int64_t first_bag, int64_t p) {
    const mpe_lookups& lookups = update.lookups;
    const float weight = lookups.weights != nullptr ? lookups.weights[p] : 1.0f;
    const int64_t bag = lookups.bags[p];
    const bool unpooled = table.pooling == MPE_pooling_none;
    row = grads.data +
          (unpooled ? p - lookups.bag_offsets[first_bag] : bag - first_bag) * grads.stride;
    factor = weight;
    if (table.pooling == MPE_pooling_mean) {
      factor = weight / static_cast<float>(lookups.bag_offsets[bag + 1] - lookups.bag_offsets[bag]);
    }
  }
};

// sum += factor * row for kRows occurrences in order: those that lane `first` and the following
// have found.
template <int kRows, bool kLong>
__device__ __forceinline__ void add_rows(const Tile& tile, int32_t dim, const Occurrence& mine,
                                         int first, RowFragment<kLong>& sum) {
  const float* rows[kRows];
  float factors[kRows];
  MPE_UNROLL
  for (int r = 0; r < kRows; ++r) {
    rows[r] = reinterpret_cast<const float*>(
        tile.shuffle(reinterpret_cast<unsigned long long>(mine.row), first + r));
    factors[r] = tile.shuffle(mine.factor, first + r);
  }
  each_chunk<kLong>(tile, dim, [&](int32_t c) {
    float x[kRows][kChunk], partial[kChunk];
    MPE_UNROLL
    for (int r = 0; r < kRows; ++r) load_floats(rows[r] + c, dim - c, x[r]);
    sum.load(c, partial);
    MPE_UNROLL
    for (int r = 0; r < kRows; ++r) {
      for (int i = 0; i < kChunk; ++i) partial[i] = fmaf(factors[r], x[r][i], partial[i]);
    }
    sum.save(c, partial);
  });
}

// Partial sum of the lookups at sorted positions [begin, end), of table t: each lane
// finds an occurrence, then all lanes add them in order, kAtOnce in flight.
template <int kAtOnce, bool kLong>
__device__ __forceinline__ void sum_block(const Update& update, const Tile& tile, int32_t t,
                                          int64_t begin, int64_t end, RowFragment<kLong>& sum) {
  const mpe_table& table = update.tables.table[t];
  const mpe_matrix grads = update.grad.of(table, t);
  const int64_t first_bag = t * update.lookups.batch_size;
  const int32_t dim = update.dim();
  const float zeros[kChunk] = {};
  each_chunk<kLong>(tile, dim, [&](int32_t c) { sum.save(c, zeros); });
  const int lanes = 1 << tile.shift;
  for (int64_t base = begin; base < end; base += lanes) {
    const int64_t position = base + tile.lane < end ? base + tile.lane : base;
    const Occurrence mine(update, table, grads, first_bag, update.unique.positions[position]);
    const int here = end - base < lanes ? static_cast<int>(end - base) : lanes;
    int j = 0;
    MPE_NO_UNROLL
    for (; j + kAtOnce <= here; j += kAtOnce) add_rows<kAtOnce>(tile, dim, mine, j, sum);
    MPE_NO_UNROLL
    for (; j < here; ++j) add_rows<1>(tile, dim, mine, j, sum);
  }
  // With a factor that is not finite, columns beyond the row are NaN by now.
  each_chunk<kLong>(tile, dim, [&](int32_t c) {
    float x[kChunk];
    sum.load(c, x);
    fill_beyond(x, dim - c, 0.0f);
    sum.save(c, x);
  });
}

// The gradient of a hot row with n occurrences: the sum of its blocks' sums.
template <bool kLong>
__device__ __forceinline__ void add_partials(const Update& update, const Tile& tile,
                                             const HotRows& hot, int64_t u, int64_t n,
                                             RowFragment<kLong>& total) {
  const float* sums = hot.sums + static_cast<int64_t>(hot.row_block[u]) * hot.stride;
  const int64_t blocks = (n + kBlock - 1) / kBlock;
  each_chunk<kLong>(tile, update.dim(), [&](int32_t c) {
    float x[kChunk];
    load_floats(sums + c, kChunk, x);
    for (int64_t b = 1; b < blocks; ++b) {
      float next[kChunk];
      load_floats(sums + b * hot.stride + c, kChunk, next);
      for (int i = 0; i < kChunk; ++i) x[i] = x[i] + next[i];
    }
    total.save(c, x);
  });
}

}  // namespace cuda
}  // namespace mpembed
