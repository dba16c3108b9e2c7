// A group of tables as kernels get it, by value in their arguments.
#pragma once

#include "cuda/layout.cuh"
#include "mpembed/cache.h"
#include "mpembed/changed.h"

namespace mpembed {
namespace cuda {

struct Tables {
  const mpe_table* table;
  int32_t count;
  int32_t dim;
  StateShapes states;
  int32_t alignment;  // of all rows and element-wise states: columns that may be loaded at once

  Tables() = default;
  explicit Tables(const mpe_group& group)
      : table(group.device_tables),
        count(group.num_tables),
        dim(group.dim),
        states(state_shapes(group)),
        alignment(column_alignment(group, states)) {}

  // FP32 values of a slot of the cache.
  __device__ int32_t slot_floats() const { return dim * (1 + states.num_elements); }

  // The table that holds a linear row id.
  __device__ int32_t find(uint64_t key) const {
    const int64_t id = static_cast<int64_t>(key);
    return static_cast<int32_t>(first_at_least(
        count - 1, id + 1, [&](int64_t t) { return table[t].base + table[t].num_rows; }));
  }
};

// How rows are rounded: the group's rounding mode and the key of the random bits.
struct Rounding {
  const uint64_t* step;
  uint64_t seed;
  int32_t mode;

  explicit Rounding(const mpe_group& group)
      : step(group.step), seed(group.seed), mode(group.rounding) {}

  __device__ bool random() const { return mode != MPE_rounding_nearest; }
  // Whether what a write of a row draws depends on the row that it overwrites.
  __device__ bool paired() const { return mode == MPE_rounding_paired; }
  __device__ RowStream stream(RngDomain domain, const mpe_table& table, int64_t row) const {
    return RowStream(seed, domain, static_cast<uint32_t>(table.table_id),
                     static_cast<uint64_t>(table.first_row + row), *step);
  }
};

// For rows that overwrite none: paired rounding has nothing to pair with. Kernels leave its code
// out.
struct NewRounding : Rounding {
  using Rounding::Rounding;
  __device__ static constexpr bool paired() { return false; }
};

// Sets the bit of a row or slot that is written; one lane of its tile calls it.
__device__ __forceinline__ void mark_written(uint32_t* changed, int64_t index) {
  if (!kModel) mark_changed(changed, index);
}

__device__ inline void count_stat(const mpe_table& table, int stat, int64_t n) {
  if (table.stats != nullptr && n != 0) atomic_add64(table.stats + stat, n);
}

}  // namespace cuda
}  // namespace mpembed
