// Gradients of rows: the sums over their lookups in the contract's order (docs/numerics.md, 5).
#pragma once

#include "cpu/common.h"
#include "cpu/lanes.h"

MPE_BEGIN

constexpr int64_t kBlock = MPE_GRADIENT_BLOCK;

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

// Columns [c, c + kVectors * kLanes) of the sum of the lookups at sorted places [begin, end).
template <int kVectors>
inline void sum_columns(const Update& k, const GradRows& rows, int64_t begin, int64_t end,
                        int64_t c, float* acc) {
  Floats sum[kVectors];
  for (int64_t i = begin; i < end; ++i) {
    const int64_t p = k.u.positions[i];
    const Floats factor(rows.coefficient(p));
    const float* x = rows.row(p) + c;
    for (int v = 0; v < kVectors; ++v) {
      sum[v] = fused(factor, Floats::load(x + v * kLanes), sum[v]);
    }
  }
  for (int v = 0; v < kVectors; ++v) sum[v].store(acc + c + v * kLanes);
}

// The partial sum of the lookups at sorted places [begin, end). acc has room for whole vectors;
// what lies beyond the row's columns becomes zero.
inline void sum_block(const Update& k, const GradRows& rows, int64_t begin, int64_t end,
                      float* acc) {
  constexpr int kMany = 4;  // sums that stay in registers
  const int64_t dim = k.g.dim;
  int64_t c = 0;
  for (; c + kMany * kLanes <= dim; c += kMany * kLanes) {
    sum_columns<kMany>(k, rows, begin, end, c, acc);
  }
  for (; c + kLanes <= dim; c += kLanes) sum_columns<1>(k, rows, begin, end, c, acc);
  if (c == dim) return;
  Floats sum;
  for (int64_t i = begin; i < end; ++i) {
    const int64_t p = k.u.positions[i];
    sum = fused(rows.coefficient(p), Floats::load_some(rows.row(p) + c, dim - c), sum);
  }
  sum.store(acc + c);
}

// Partial sums of the rows with more than one block, computed by all threads first, so that one
// very hot row does not leave the others idle.
class HotRows {
 public:
  explicit HotRows(const Update& k)
      : width_(ceil_div(k.g.dim, kLanes) * kLanes), rows_(count_rows(k)), sums_(blocks_ * width_) {
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
      sum_block(k, grads, begin, end, sums_.get() + block * width_);
    });
  }

  // The row's gradient, as sum_block leaves one.
  void total(const Update& k, int64_t row, float* acc) const {
    const Hot& hot = rows_[find(row, [&](int64_t i) { return rows_[i].row; })];
    const float* sum = sums_.get() + hot.block * width_;
    memcpy(acc, sum, static_cast<size_t>(width_) * sizeof(float));
    for (int64_t b = 1; b < ceil_div(k.occurrences(row), kBlock); ++b) {
      sum += width_;
      for (int64_t c = 0; c < width_; ++c) acc[c] += sum[c];
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
  const int64_t width_;
  Buffer<Hot> rows_;
  Buffer<float> sums_;
};

MPE_END
