// What the CPU kernels share: owned workspace, addresses of rows, prefetches.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>

#include "cpu/decode.h"
#include "cpu/shared/workspace.h"
#include "cpu/tasks.h"
#include "mpembed/api.h"
#include "mpembed/cache.h"
#include "mpembed/macros.h"
#include "mpembed/registry_types.h"

MPE_BEGIN

// Uninitialised workspace, released at the end of the scope. Check ok() before use.
template <class T>
class Workspace {
 public:
  explicit Workspace(int64_t n)
      : data_(static_cast<T*>(
            cpu::acquire_workspace(static_cast<size_t>(n > 0 ? n : 1) * sizeof(T)))) {}
  ~Workspace() { cpu::release_workspace(data_); }
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;

  bool ok() const { return data_ != nullptr; }
  T* get() const { return data_; }
  T& operator[](int64_t i) const { return data_[i]; }

 private:
  T* data_;
};

// First i in [0, n] with measure(i) >= target, measure ascending.
template <class Measure>
inline int64_t first_at_least(int64_t n, int64_t target, Measure measure) {
  int64_t low = 0, high = n;
  while (low < high) {
    const int64_t middle = low + (high - low) / 2;
    if (measure(middle) < target) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

inline int64_t unique_count(const mpe_unique& unique) { return *unique.count; }

// The table that holds a linear row id; `hint` is the table of a nearby id.
inline int32_t find_table(const mpe_group& group, uint64_t key, int32_t hint = 0) {
  const int64_t id = static_cast<int64_t>(key);
  const mpe_table& hinted = group.tables[hint];
  if (id >= hinted.base && id - hinted.base < hinted.num_rows) return hint;
  return static_cast<int32_t>(first_at_least(group.num_tables - 1, id + 1, [&](int64_t t) {
    return group.tables[t].base + group.tables[t].num_rows;
  }));
}

inline uint8_t* row_address(const mpe_table& table, uint64_t key) {
  return table.rows + (static_cast<int64_t>(key) - table.base) * table.row_stride;
}

inline int64_t row_bytes_of(const mpe_table& table, int64_t dim) {
  return with_format(table.precision,
                     [&](auto format) { return decltype(format)::row_bytes(dim); });
}

// Prefetches the cache lines of a row.
inline void prefetch_bytes(const void* p, int64_t bytes, bool write) {
  // GCC believes that a function that only prefetches has no effect, and deletes calls to it.
  __asm__ volatile("");
  const char* line = static_cast<const char*>(p);
  const char* end = line + (bytes < 1024 ? bytes : 1024);
  // A row that is not made of whole lines may reach into one more; that is not worth a branch.
  if (((reinterpret_cast<uintptr_t>(p) | static_cast<uintptr_t>(bytes)) & 63) != 0) {
    __builtin_prefetch(end - 1, 0, 3);
  }
  for (; line < end; line += 64) {
    if (write) {
      __builtin_prefetch(line, 1, 3);
    } else {
      __builtin_prefetch(line, 0, 3);
    }
  }
}

inline void decode(int32_t precision, const uint8_t* row, int64_t dim, float* out) {
  with_format(precision, [&](auto format) { decode_row<decltype(format)>(row, dim, out); });
}

// How many values are not finite or exceed the bound in magnitude (bits of a positive float).
inline int64_t count_beyond(const float* x, int64_t dim, uint32_t max_abs_bits) {
  uint32_t count = 0;
  for (int64_t c = 0; c < dim; ++c) {
    count += (float_bits(x[c]) & 0x7FFFFFFFu) > max_abs_bits ? 1u : 0u;
  }
  return count;
}

MPE_END
