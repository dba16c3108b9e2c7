// Measures what rounding adds to rows that are written, for a sample of the writes.
#pragma once

#include "cpu/codes.h"
#include "cpu/common.h"
#include "mpembed/noise.h"

MPE_BEGIN

// The writes of one table's rows that are measured.
class NoiseSample {
 public:
  NoiseSample(const mpe_group& group, const mpe_table& table)
      : table_(table), dim_(group.dim), step_(*group.step), rounding_(group.rounding) {}

  // row: its number in the table.
  bool has(int64_t row) const {
    return table_.noise != nullptr &&
           noise_sampled(static_cast<uint64_t>(table_.table_id),
                         static_cast<uint64_t>(table_.first_row + row), step_);
  }

  // x: an updated row; old: the row before; rounded: x goes to the table and not to a slot.
  __attribute__((noinline)) void add_update(const float* x, const float* old, bool rounded) const {
    with_row(x, [&](const auto& row) {
      int64_t squares = 0;
      for (int64_t c = 0; c < dim_; ++c) squares += row.update(x[c], old[c]);
      add(MPE_noise_rows, 1);
      add(MPE_noise_update, squares / dim_);
      if (rounded) add_rounding(x, row);
    });
  }

  // x: a cached row that is written to the table.
  __attribute__((noinline)) void add_write_back(const float* x) const {
    with_row(x, [&](const auto& row) { add_rounding(x, row); });
  }

 private:
  // Calls visit(row) if the row can be measured in the table's format.
  template <class Visit>
  void with_row(const float* x, Visit visit) const {
    with_format(table_.precision, [&](auto format) {
      using Format = decltype(format);
      if constexpr (!Format::kExact) {
        float low, high;
        range_of(x, dim_, &low, &high);
        const RowNoise<Format> row(low, high);
        if (row.measurable()) visit(row);
      }
    });
  }

  template <class Row>
  void add_rounding(const float* x, const Row& row) const {
    const bool stochastic = rounding_ != MPE_rounding_nearest;
    int64_t squares = 0;
    for (int64_t c = 0; c < dim_; ++c) squares += row.noise(x[c], stochastic);
    add(MPE_noise_rounding, squares / dim_);
  }
  void add(int sum, int64_t n) const {
    __atomic_fetch_add(table_.noise + sum, n, __ATOMIC_RELAXED);
  }

  const mpe_table& table_;
  const int64_t dim_;
  const uint64_t step_;
  const int32_t rounding_;
};

MPE_END
