// A row's gradient: occurrences in input order, in blocks of 64 whose partial sums are added in
// order (docs/numerics.md, section 5).
#pragma once

#include "cuda/row.cuh"

namespace mpembed {
namespace cuda {

constexpr int64_t kBlock = 64;  // occurrences a partial sum; part of the definition

struct Update {
  Tables tables;
  Rounding rounding;
  mpe_cache cache;
  mpe_optimizer optimizer;
  mpe_lookups l;
  mpe_unique unique;
  const int32_t* slots;  // one a unique row, or NULL
  Outputs grad;

  __device__ int64_t dim() const { return tables.dim; }
  __device__ OptimizerSettings settings() const {
    const float lr = optimizer.device_lr != nullptr ? *optimizer.device_lr : optimizer.lr;
    return OptimizerSettings{lr, optimizer.eps, optimizer.weight_decay, optimizer.decay_mode};
  }
};

// The rows with more than one block. Each has consecutive blocks from row_block[u] on.
struct Hot {
  int32_t* blocks;     // how many there are
  int32_t* row_block;  // one a unique row
  int32_t* block_row;  // the unique row of each block
  float* sums;         // one row a block
  float* scratch;      // three rows a tile, for long rows
};

// No more blocks than this: a hot row has at least 65 occurrences, so n / 65 rows at most.
inline int64_t max_hot_blocks(int64_t n) { return n <= kBlock ? 0 : n / kBlock + n / (kBlock + 1); }

// A lane's columns of a row: K registers, or with K = 0 a row of memory.
template <int W, int K>
class Columns {
 public:
  __device__ Columns(float*, int64_t, const Update&) {}
  __device__ float& operator[](int64_t i) { return v_[i]; }
  __device__ float operator[](int64_t i) const { return v_[i]; }

  // visit(i, c) for this lane's columns: element i holds column c.
  template <class Visit>
  __device__ void each(const Tile<W>& tile, int64_t dim, Visit visit) const {
    MPE_UNROLL
    for (int i = 0; i < K; ++i) {
      const int64_t c = tile.lane + W * i;
      if (c < dim) visit(i, c);
    }
  }

 private:
  float v_[K];
};

template <int W>
class Columns<W, 0> {
 public:
  __device__ Columns(float* rows, int64_t row, const Update& k)
      : v_(rows + row * k.dim() + (lane_index() & (W - 1))) {}
  __device__ float& operator[](int64_t i) { return v_[W * i]; }
  __device__ float operator[](int64_t i) const { return v_[W * i]; }

  template <class Visit>
  __device__ void each(const Tile<W>& tile, int64_t dim, Visit visit) const {
    for (int64_t i = 0; tile.lane + W * i < dim; ++i) visit(i, tile.lane + W * i);
  }

 private:
  float* v_;
};

// Where the gradient of one occurrence lies, and its factor.
struct Occurrence {
  const float* row;
  float factor;

  __device__ Occurrence(const Update& k, const mpe_table& table, const mpe_matrix& m,
                        int64_t first_bag, int64_t p) {
    const mpe_lookups& l = k.l;
    const float w = l.weights != nullptr ? l.weights[p] : 1.0f;
    const int64_t bag = l.bags[p];
    const bool unpooled = table.pooling == MPE_pooling_none;
    row = m.data + (unpooled ? p - l.bag_offsets[first_bag] : bag - first_bag) * m.stride;
    factor = w;
    if (table.pooling == MPE_pooling_mean) {
      factor = w / static_cast<float>(l.bag_offsets[bag + 1] - l.bag_offsets[bag]);
    }
  }
};

// Partial sum of the lookups at sorted places [begin, end), of table t: the lanes find an
// occurrence each, then all add them in order.
template <int W, int K>
__device__ void sum_block(const Update& k, const Tile<W>& tile, int32_t t, int64_t begin,
                          int64_t end, Columns<W, K>& sum) {
  const mpe_table& table = k.tables.table[t];
  const mpe_matrix m = k.grad.of(table, t);
  const int64_t first_bag = t * k.l.batch_size;
  sum.each(tile, k.dim(), [&](int64_t i, int64_t) { sum[i] = 0.0f; });
  for (int64_t base = begin; base < end; base += W) {
    const int64_t place = base + tile.lane < end ? base + tile.lane : base;
    const Occurrence mine(k, table, m, first_bag, k.unique.positions[place]);
    const int here = end - base < W ? static_cast<int>(end - base) : W;
    for (int j = 0; j < here; ++j) {
      const float* row = reinterpret_cast<const float*>(
          tile.shuffle(reinterpret_cast<unsigned long long>(mine.row), j));
      const float factor = tile.shuffle(mine.factor, j);
      sum.each(tile, k.dim(), [&](int64_t i, int64_t c) { sum[i] = fmaf(factor, row[c], sum[i]); });
    }
  }
}

// The gradient of a hot row of n occurrences out of its blocks' sums.
template <int W, int K>
__device__ void add_partials(const Update& k, const Tile<W>& tile, const Hot& hot, int64_t u,
                             int64_t n, Columns<W, K>& total) {
  const float* sums = hot.sums + static_cast<int64_t>(hot.row_block[u]) * k.dim();
  const int64_t blocks = (n + kBlock - 1) / kBlock;
  total.each(tile, k.dim(), [&](int64_t i, int64_t c) { total[i] = sums[c]; });
  for (int64_t b = 1; b < blocks; ++b) {
    total.each(tile, k.dim(),
               [&](int64_t i, int64_t c) { total[i] = total[i] + sums[b * k.dim() + c]; });
  }
}

}  // namespace cuda
}  // namespace mpembed
