// A group of tables as kernels get it, by value in their arguments.
#pragma once

#include "cuda/launch.cuh"
#include "mpembed/cache.h"
#include "mpembed/registry_types.h"

namespace mpembed {
namespace cuda {

constexpr int kChunk = 8;  // columns that a lane holds at once, see chunk.cuh
constexpr int kHalfChunk = 4;

// The alignment of rows in columns: how many a lane may load at once, 1 if nothing is known.
// `aligned`: the first row begins at a multiple of 16 bytes.
inline int32_t column_alignment(int64_t dim, bool aligned) {
  if (!aligned) return 1;
  return dim % kChunk == 0 ? kChunk : dim % kHalfChunk == 0 ? kHalfChunk : 1;
}

inline bool aligned16(const void* address) {
  return reinterpret_cast<uintptr_t>(address) % 16 == 0;
}

inline bool aligned_rows(const mpe_group& group) {
  bool aligned = group.cache == nullptr || aligned16(group.cache->rows);
  for (int32_t t = 0; t < group.num_tables; ++t) {
    aligned = aligned && aligned16(group.tables[t].rows) && aligned16(group.tables[t].state);
  }
  return aligned;
}

struct Tables {
  const mpe_table* table;
  int32_t count;
  int32_t dim;
  int32_t alignment;  // of all rows and of element-wise states

  Tables() = default;
  explicit Tables(const mpe_group& group)
      : table(group.device_tables),
        count(group.num_tables),
        dim(group.dim),
        alignment(column_alignment(group.dim, aligned_rows(group))) {}

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

  __device__ bool stochastic() const { return mode == MPE_rounding_stochastic; }
  __device__ RowStream stream(RngDomain domain, const mpe_table& table, int64_t row) const {
    return RowStream(seed, domain, static_cast<uint32_t>(table.table_id),
                     static_cast<uint64_t>(row), *step);
  }
};

struct Outputs {
  mpe_outputs outputs;

  __device__ mpe_matrix of(const mpe_table& table, int32_t t) const {
    if (outputs.tables != nullptr) return outputs.tables[t];
    return mpe_matrix{outputs.shared.data + table.column, outputs.shared.stride};
  }
};

__device__ inline void count_stat(const mpe_table& table, int stat, int64_t n) {
  if (table.stats != nullptr && n != 0) atomic_add64(table.stats + stat, n);
}

}  // namespace cuda
}  // namespace mpembed
