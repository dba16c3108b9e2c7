// A slot of the cache: the row and its element-wise states in FP32, one after the other, and apart
// from them its states of one value.
#pragma once

#include "cuda/noise.cuh"
#include "cuda/state.cuh"

namespace mpembed {
namespace cuda {

struct Slot {
  const Tables& tables;
  const mpe_cache& cache;
  int32_t number;

  __device__ __forceinline__ float* row() const {
    return cache.rows + number * int64_t{tables.slot_floats()};
  }
  __device__ __forceinline__ float* element(int k) const {
    return row() + int64_t{k + 1} * tables.dim;
  }
  __device__ __forceinline__ float* value(int k) const {
    return cache.values + number * int64_t{tables.states.num_values} + k;
  }
};

// Calls element(i, its values) or value(i, its value) for each state of a slot, i its number.
template <class Element, class Value>
__device__ __forceinline__ void each_state(const Slot& slot, Element element, Value value) {
  if constexpr (kModel) return;
  const Tables& tables = slot.tables;
  MPE_NO_UNROLL
  for (int k = 0; k < tables.states.num_elements; ++k) {
    element(tables.states.element[k], slot.element(k));
  }
  MPE_NO_UNROLL
  for (int k = 0; k < tables.states.num_values; ++k) {
    value(tables.states.value[k], slot.value(k));
  }
}

// Writes a slot's row and states into the table of linear row id `id`, which is number t.
template <bool kLong>
__device__ __forceinline__ void write_back(const Tile& tile, const Tables& tables,
                                           const Rounding& rounding, uint64_t id, int32_t t,
                                           const Slot& slot) {
  const mpe_table& table = tables.table[t];
  const int64_t row = static_cast<int64_t>(id) - table.base;
  if (tile.lane == 0) mark_written(table.changed, row);
  RowFragment<kLong> fragment(slot.row());  // a long row is only read
  if (!kLong) {
    each_chunk<kLong>(tile, tables.dim, [&](int32_t c) {
      float x[kChunk];
      load_floats(slot.row() + c, tables.dim - c, x);
      fragment.save(c, x);
    });
  }
  if (is_measured(rounding, table, row)) {
    measure(tile, tables.dim, table, MeasuredRow<kLong>{fragment, slot.row(), nullptr},
            rounding.random());
  }
  write_table_row<kLong>(tile, tables, rounding, table, row, [&](int32_t c, float* x) {
    if (kLong) return load_floats(slot.row() + c, tables.dim - c, x);
    fragment.load(c, x);
  });
  each_state(
      slot,
      [&](int32_t i, const float* from) {
        write_state<kLong>(tile, tables, rounding, table, i, row,
                           [&](int32_t c, float* x) { load_floats(from + c, tables.dim - c, x); });
      },
      [&](int32_t i, const float* from) {
        if (tile.lane == 0) write_value(rounding, table, i, row, *from);
      });
}

// Reads a table's row and states into a slot.
template <bool kLong>
__device__ __forceinline__ void read_in(const Tile& tile, const Tables& tables,
                                        const mpe_table& table, int64_t row, const Slot& slot) {
  if (tile.lane == 0) mark_written(slot.cache.changed, slot.number);
  each_chunk<kLong>(tile, tables.dim, [&](int32_t c) {
    float x[kChunk];
    read_table_chunk(tables, table, row, c, x);
    store_floats(slot.row() + c, tables.dim - c, x);
  });
  each_state(
      slot,
      [&](int32_t i, float* to) {
        read_state<kLong>(tile, tables, table.states[i], row, [&](int32_t c, const float* x) {
          store_floats(to + c, tables.dim - c, x);
        });
      },
      [&](int32_t i, float* to) {
        if (tile.lane == 0) *to = read_value(table.states[i], row);
      });
}

}  // namespace cuda
}  // namespace mpembed
