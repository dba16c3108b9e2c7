// Where rows and their states lie: in the slots of a cache, and in a table's memory.
#pragma once

#include "cpu/common.h"
#include "state_formats.h"

MPE_BEGIN

// The slots of a group's cache.
class Slots {
 public:
  explicit Slots(const mpe_group& group) : Slots(group, state_shapes(group)) {}
  Slots(const mpe_group& group, const StateShapes& shapes)
      : rows_(group.cache != nullptr ? group.cache->rows : nullptr),
        all_values_(group.cache != nullptr ? group.cache->values : nullptr),
        dim_(group.dim),
        floats_(shapes.slot_floats(group.dim)),
        num_values_(shapes.slot_values()) {}

  float* row(int64_t slot) const { return rows_ + slot * floats_; }
  StoredRow<Fp32> stored_row(int64_t slot) const {
    return {reinterpret_cast<const uint8_t*>(row(slot)), dim_};
  }
  // The states of a value an element, by their number among those.
  float* element(int64_t slot, int i) const { return row(slot) + (1 + i) * dim_; }
  // The states of one value.
  float* values(int64_t slot) const { return all_values_ + slot * num_values_; }
  int64_t row_bytes() const { return dim_ * 4; }

  // Of the row and all states.
  void prefetch(int64_t slot, bool write) const {
    prefetch_bytes(row(slot), floats_ * 4, write);
    if (num_values_ != 0) __builtin_prefetch(values(slot), 1, 3);
  }

 private:
  float *rows_, *all_values_;
  int64_t dim_, floats_, num_values_;
};

// The memory of a table's rows and states as few pieces a row: one where the states follow the row.
class RecordSpans {
 public:
  RecordSpans(const mpe_group& group, const StateShapes& shapes, const mpe_table& table) {
    spans_[0] = Span{table.rows, table.row_stride, row_bytes_of(table, group.dim)};
    for (int i = 0; i < shapes.num_elements; ++i) add(table.states[shapes.element[i]], group.dim);
    for (int i = 0; i < shapes.num_values; ++i) add(table.states[shapes.value[i]], 1);
  }

  void prefetch(int64_t row, bool write) const {
    for (int i = 0; i < n_; ++i) {
      prefetch_bytes(spans_[i].data + row * spans_[i].stride, spans_[i].bytes, write);
    }
  }

 private:
  struct Span {
    uint8_t* data;
    int64_t stride, bytes;
  };

  void add(const mpe_state& state, int64_t count) {
    const int64_t bytes = with_state_format(
        state.format, [=](auto format) { return decltype(format)::row_bytes(count); });
    for (int i = 0; i < n_; ++i) {
      Span& span = spans_[i];
      const int64_t distance = static_cast<int64_t>(reinterpret_cast<uintptr_t>(state.data) -
                                                    reinterpret_cast<uintptr_t>(span.data));
      if (state.stride != span.stride || distance < 0 || distance > span.stride - bytes) continue;
      span.bytes = distance + bytes > span.bytes ? distance + bytes : span.bytes;
      return;
    }
    spans_[n_++] = Span{state.data, state.stride, bytes};
  }

  int n_ = 1;
  Span spans_[1 + MPE_MAX_STATES];
};

// Prefetches rows and their states by their linear ids, which often follow those of one table.
class RecordPrefetch {
 public:
  RecordPrefetch(const mpe_group& group, const StateShapes& shapes)
      : group_(group), shapes_(shapes), spans_(group, shapes, group.tables[0]) {}

  // t: the table of the row.
  void operator()(uint64_t id, int32_t t, bool write) {
    const mpe_table& table = group_.tables[t];
    if (t != table_) {
      spans_ = RecordSpans(group_, shapes_, table);
      table_ = t;
    }
    spans_.prefetch(static_cast<int64_t>(id) - table.base, write);
  }
  // The same for a row near the last one's.
  void operator()(uint64_t id, bool write) { (*this)(id, find_table(group_, id, table_), write); }

 private:
  const mpe_group& group_;
  const StateShapes& shapes_;
  int32_t table_ = 0;  // of the last row
  RecordSpans spans_;
};

MPE_END
