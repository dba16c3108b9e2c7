// Gradients of rows: the sums over their lookups in the contract's order (docs/numerics.md, 5).
#pragma once

#include "cpu/common.h"

MPE_BEGIN

constexpr int64_t kBlock = 64;  // occurrences a partial sum; part of the definition

struct Update {
  const mpe_group& g;
  const mpe_optimizer& o;
  const mpe_lookups& l;
  const mpe_unique& u;
  int64_t unique;
  const int32_t* slots;
  const mpe_outputs& grad;

  int64_t occurrences(int64_t row) const { return u.starts[row + 1] - u.starts[row]; }
  int64_t slot(int64_t row) const { return slots == nullptr ? -1 : slots[row]; }
};

// Where the gradients of a table's lookups lie.
class GradRows {
 public:
  GradRows(const Update& k, int32_t t)
      : k_(k),
        grad_(matrix_of(k.g, k.grad, t)),
        first_bag_(t * k.l.batch_size),
        first_(k.l.bag_offsets[first_bag_]),
        pooling_(k.g.tables[t].pooling) {}

  const float* row(int64_t p) const {
    const int64_t line = pooling_ == MPE_pooling_none ? p - first_ : k_.l.bags[p] - first_bag_;
    return grad_.data + line * grad_.stride;
  }
  float coefficient(int64_t p) const {
    const float w = k_.l.weights != nullptr ? k_.l.weights[p] : 1.0f;
    if (pooling_ != MPE_pooling_mean) return w;
    const int64_t bag = k_.l.bags[p];
    return w / static_cast<float>(k_.l.bag_offsets[bag + 1] - k_.l.bag_offsets[bag]);
  }

 private:
  const Update& k_;
  mpe_matrix grad_;
  int64_t first_bag_, first_;
  int32_t pooling_;
};

inline void add_scaled(float c, const float* __restrict x, int64_t dim, float* __restrict acc) {
  for (int64_t i = 0; i < dim; ++i) acc[i] = fmaf(c, x[i], acc[i]);
}

// Partial sum of the lookups at sorted places [begin, end), of which there is at least one.
inline void sum_block(const Update& k, const GradRows& rows, int64_t begin, int64_t end,
                      float* __restrict acc) {
  const int64_t first = k.u.positions[begin];
  const float c = rows.coefficient(first);
  const float* __restrict x = rows.row(first);
  for (int64_t i = 0; i < k.g.dim; ++i) acc[i] = fmaf(c, x[i], 0.0f);
  for (int64_t i = begin + 1; i < end; ++i) {
    const int64_t p = k.u.positions[i];
    add_scaled(rows.coefficient(p), rows.row(p), k.g.dim, acc);
  }
}

// Partial sums of the rows with more than one block, computed by all threads first, so that one
// very hot row does not leave the others idle.
class HotRows {
 public:
  explicit HotRows(const Update& k) : rows_(count_rows(k)), sums_(blocks_ * k.g.dim) {
    int64_t n = 0, block = 0;
    if (!ok()) return;
    for (int64_t row = 0; num_rows_ > 0 && row < k.unique; ++row) {
      if (k.occurrences(row) <= kBlock) continue;
      rows_[n++] = Hot{row, block};
      block += ceil_div(k.occurrences(row), kBlock);
    }
  }
  bool ok() const { return rows_.ok() && sums_.ok(); }

  void compute(const Update& k) {
    mpe::parallel(blocks_, [&](int64_t block) {
      const Hot& hot = rows_[find(block, [&](int64_t i) { return rows_[i].block; })];
      const GradRows grads(k, find_table(k.g, k.u.rows[hot.row]));
      const int64_t begin = k.u.starts[hot.row] + (block - hot.block) * kBlock;
      const int64_t end = min64(begin + kBlock, k.u.starts[hot.row + 1]);
      sum_block(k, grads, begin, end, sums_.get() + block * k.g.dim);
    });
  }

  void total(const Update& k, int64_t row, float* acc) const {
    const int64_t dim = k.g.dim;
    const Hot& hot = rows_[find(row, [&](int64_t i) { return rows_[i].row; })];
    const float* sum = sums_.get() + hot.block * dim;
    memcpy(acc, sum, static_cast<size_t>(dim) * sizeof(float));
    for (int64_t b = 1; b < ceil_div(k.occurrences(row), kBlock); ++b) {
      sum += dim;
      for (int64_t c = 0; c < dim; ++c) acc[c] += sum[c];
    }
  }

 private:
  struct Hot {
    int64_t row, block;
  };

  // The last hot row whose measure is at most x.
  template <class Measure>
  int64_t find(int64_t x, Measure measure) const {
    return first_at_least(num_rows_, x + 1, measure) - 1;
  }
  int64_t count_rows(const Update& k) {
    for (int64_t row = 0; row < k.unique; ++row) {
      if (k.occurrences(row) <= kBlock) continue;
      ++num_rows_;
      blocks_ += ceil_div(k.occurrences(row), kBlock);
    }
    return num_rows_;
  }

  int64_t num_rows_ = 0, blocks_ = 0;
  Buffer<Hot> rows_;
  Buffer<float> sums_;
};

MPE_END
