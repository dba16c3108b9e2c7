// A group of tables as kernels see it, by value in their arguments.
#pragma once

#include "cuda/launch.cuh"
#include "mpembed/cache.h"
#include "mpembed/registry_types.h"

namespace mpembed {
namespace cuda {

constexpr int kChunk = 8;  // columns that a lane has at once, see chunk.cuh
constexpr int kHalfChunk = 4;

// How far rows of such a dimension at such places are aligned: the columns that can be loaded at
// once, 1 where nothing is known.
inline int32_t grain_of(int64_t dim, bool aligned) {
  if (!aligned) return 1;
  return dim % kChunk == 0 ? kChunk : dim % kHalfChunk == 0 ? kHalfChunk : 1;
}

inline bool aligned16(const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }

inline bool aligned_rows(const mpe_group& g) {
  bool aligned = g.cache == nullptr || aligned16(g.cache->rows);
  for (int32_t t = 0; t < g.num_tables; ++t) {
    aligned = aligned && aligned16(g.tables[t].rows) && aligned16(g.tables[t].state);
  }
  return aligned;
}

struct Tables {
  const mpe_table* table;
  int32_t count;
  int32_t dim;
  int32_t grain;  // of all rows and of the state of their elements

  Tables() = default;
  explicit Tables(const mpe_group& g)
      : table(g.device_tables),
        count(g.num_tables),
        dim(g.dim),
        grain(grain_of(g.dim, aligned_rows(g))) {}

  // The table that holds a linear row id.
  __device__ int32_t find(uint64_t key) const {
    const int64_t id = static_cast<int64_t>(key);
    return static_cast<int32_t>(first_at_least(
        count - 1, id + 1, [&](int64_t t) { return table[t].base + table[t].num_rows; }));
  }
};

// How rows are encoded: the group's rounding and the key of the random bits.
struct Rounding {
  const uint64_t* step;
  uint64_t seed;
  int32_t mode;

  explicit Rounding(const mpe_group& g) : step(g.step), seed(g.seed), mode(g.rounding) {}

  __device__ bool stochastic() const { return mode == MPE_rounding_stochastic; }
  __device__ RowStream stream(RngDomain domain, const mpe_table& table, int64_t row) const {
    return RowStream(seed, domain, static_cast<uint32_t>(table.table_id),
                     static_cast<uint64_t>(row), *step);
  }
};

struct Outputs {
  mpe_outputs o;

  __device__ mpe_matrix of(const mpe_table& table, int32_t t) const {
    if (o.tables != nullptr) return o.tables[t];
    return mpe_matrix{o.shared.data + table.column, o.shared.stride};
  }
};

__device__ inline void count_stat(const mpe_table& table, int stat, int64_t n) {
  if (table.stats != nullptr && n != 0) atomic_add64(table.stats + stat, n);
}

}  // namespace cuda
}  // namespace mpembed
