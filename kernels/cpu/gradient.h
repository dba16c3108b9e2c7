// Gradients of rows: the sums over their lookups in the contract's order (docs/numerics.md, 5).
#pragma once

#include "cpu/common.h"
#include "cpu/lanes.h"
#include "outputs.h"

MPE_BEGIN

constexpr int64_t kBlock = MPE_GRADIENT_BLOCK;

struct Update {
  const mpe_group& group;
  const mpe_gradient* parts;
  int32_t num_parts;
  const mpe_unique& unique;
  int64_t count;  // of unique rows
  const int32_t* slots;

  int64_t occurrences(int64_t row) const { return unique.starts[row + 1] - unique.starts[row]; }
  int64_t slot(int64_t row) const { return slots == nullptr ? -1 : slots[row]; }
};

// The gradients of a table's lookups of one batch, in a format of outputs.
template <class Format>
class GradRows {
 public:
  GradRows(const mpe_group& group, const mpe_gradient& part, int32_t t)
      : grad_(*part.grad, group.tables[t], t),
        bags_(part.lookups->bags),
        offsets_(part.lookups->bag_offsets),
        weights_(part.lookups->weights),
        first_bag_(t * part.lookups->batch_size),
        first_(offsets_[first_bag_]),
        dim_(group.dim),
        pooling_(group.tables[t].pooling) {}

  // What row() reads to find a lookup's gradient.
  void prefetch_bag(int64_t p) const { __builtin_prefetch(bags_ + p, 0, 3); }
  void prefetch(int64_t p) const { prefetch_bytes(address(p), Format::row_bytes(dim_), false); }
  StoredRow<Format> row(int64_t p) const { return StoredRow<Format>(address(p), dim_); }
  float coefficient(int64_t p) const {
    const float weight = weights_ != nullptr ? weights_[p] : 1.0f;
    if (pooling_ != MPE_pooling_mean) return weight;
    const int64_t* offsets = offsets_ + bags_[p];
    return weight / static_cast<float>(offsets[1] - offsets[0]);
  }

 private:
  const uint8_t* address(int64_t p) const {
    const bool unpooled = pooling_ == MPE_pooling_none;
    return grad_.row(unpooled ? p - first_ : bags_[p] - first_bag_);
  }

  const OutputRows grad_;
  const int32_t* const bags_;
  const int64_t* const offsets_;
  const float* const weights_;
  const int64_t first_bag_, first_, dim_;
  const int32_t pooling_;
};

// The same of the lookups of several batches, one after the other. It is made for a table at a
// time, and asked for one lookup after another.
template <class Format>
class ManyGradRows {
 public:
  ManyGradRows(const Update& update, int32_t t) : update_(update), table_(t) {}

  void prefetch_bag(int64_t p) const {
    const Place place = find(p);
    rows(place).prefetch_bag(place.position);
  }
  void prefetch(int64_t p) const {
    const Place place = find(p);
    rows(place).prefetch(place.position);
  }
  StoredRow<Format> row(int64_t p) const {
    const Place place = find(p);
    return rows(place).row(place.position);
  }
  float coefficient(int64_t p) const {
    const Place place = find(p);
    return rows(place).coefficient(place.position);
  }

 private:
  struct Place {
    int32_t part;
    int64_t position;  // in the part's own batch
  };

  Place find(int64_t p) const {
    int32_t part = 0;
    while (p >= update_.parts[part].lookups->n) p -= update_.parts[part++].lookups->n;
    return {part, p};
  }
  GradRows<Format> rows(const Place& place) const {
    return GradRows<Format>(update_.group, update_.parts[place.part], table_);
  }

  const Update& update_;
  const int32_t table_;
};

// Calls visit with the gradients of a table's lookups, as one batch's or as several.
template <class Visit>
inline void with_grad_rows(const Update& update, int32_t t, Visit visit) {
  with_output_format(update.parts[0].grad->format, [&](auto format) {
    using Format = decltype(format);
    if (update.num_parts == 1) {
      visit(GradRows<Format>(update.group, update.parts[0], t));
    } else {
      visit(ManyGradRows<Format>(update, t));
    }
  });
}

// Columns [c, c + kVectors * kLanes) of the sum of the lookups at sorted positions [begin, end).
template <int kVectors, class Rows>
inline void sum_columns(const Update& update, const Rows& rows, int64_t begin, int64_t end,
                        int64_t c, float* out) {
  Floats sum[kVectors];
  for (int64_t i = begin; i < end; ++i) {
    const int64_t p = update.unique.positions[i];
    const Floats coefficient(rows.coefficient(p));
    const auto grad = rows.row(p);
    for (int v = 0; v < kVectors; ++v) {
      sum[v] = fused(coefficient, grad.load(c + v * kLanes), sum[v]);
    }
  }
  for (int v = 0; v < kVectors; ++v) sum[v].store(out + c + v * kLanes);
}

// The partial sum of the lookups at sorted positions [begin, end). `out` has room for whole
// vectors; what lies beyond the row's columns becomes zero.
template <class Rows>
inline void sum_block(const Update& update, const Rows& rows, int64_t begin, int64_t end,
                      float* out) {
  constexpr int kMany = 4;  // sums that stay in registers
  const int64_t dim = update.group.dim;
  int64_t c = 0;
  for (; c + kMany * kLanes <= dim; c += kMany * kLanes) {
    sum_columns<kMany>(update, rows, begin, end, c, out);
  }
  for (; c + kLanes <= dim; c += kLanes) sum_columns<1>(update, rows, begin, end, c, out);
  if (c == dim) return;
  Floats sum;
  for (int64_t i = begin; i < end; ++i) {
    const int64_t p = update.unique.positions[i];
    sum = fused(rows.coefficient(p), rows.row(p).load_some(c, dim - c), sum);
  }
  sum.store(out + c);
}

// Partial sums of the rows with more than one block. All threads compute them first, so that one
// very hot row does not leave the other threads idle.
class HotRows {
 public:
  explicit HotRows(const Update& update)
      : width_(ceil_div(update.group.dim, kLanes) * kLanes),
        rows_(count_rows(update)),
        sums_(blocks_ * width_) {
    int64_t n = 0, block = 0;
    if (!ok()) return;
    for (int64_t row = 0; num_rows_ > 0 && row < update.count; ++row) {
      if (update.occurrences(row) <= kBlock) continue;
      rows_[n++] = HotRow{row, block};
      block += ceil_div(update.occurrences(row), kBlock);
    }
  }
  bool ok() const { return rows_.ok() && sums_.ok(); }

  void compute(const Update& update) {
    const mpe_unique& unique = update.unique;
    cpu::parallel(blocks_, [&](int64_t block) {
      const HotRow& hot = rows_[find(block, [&](int64_t i) { return rows_[i].block; })];
      const int64_t begin = unique.starts[hot.row] + (block - hot.block) * kBlock;
      const int64_t end = min64(begin + kBlock, unique.starts[hot.row + 1]);
      const int32_t t = find_table(update.group, unique.rows[hot.row]);
      with_grad_rows(update, t, [&](const auto& grads) {
        sum_block(update, grads, begin, end, sums_.get() + block * width_);
      });
    });
  }

  // The row's gradient, as sum_block leaves one.
  void total(const Update& update, int64_t row, float* out) const {
    const HotRow& hot = rows_[find(row, [&](int64_t i) { return rows_[i].row; })];
    const float* sum = sums_.get() + hot.block * width_;
    memcpy(out, sum, static_cast<size_t>(width_) * sizeof(float));
    for (int64_t b = 1; b < ceil_div(update.occurrences(row), kBlock); ++b) {
      sum += width_;
      for (int64_t c = 0; c < width_; ++c) out[c] += sum[c];
    }
  }

 private:
  struct HotRow {
    int64_t row;    // among the unique ones
    int64_t block;  // its first
  };

  // The last hot row whose measure is at most `value`.
  template <class Measure>
  int64_t find(int64_t value, Measure measure) const {
    return first_at_least(num_rows_, value + 1, measure) - 1;
  }
  int64_t count_rows(const Update& update) {
    for (int64_t row = 0; row < update.count; ++row) {
      if (update.occurrences(row) <= kBlock) continue;
      ++num_rows_;
      blocks_ += ceil_div(update.occurrences(row), kBlock);
    }
    return num_rows_;
  }

  int64_t num_rows_ = 0, blocks_ = 0;
  const int64_t width_;
  Workspace<HotRow> rows_;
  Workspace<float> sums_;
};

MPE_END
