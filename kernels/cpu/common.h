// What the CPU kernels share: small owners of workspace, row addresses, and how work is cut.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>

#include "cpu/decode.h"
#include "cpu/parallel.h"
#include "cpu/workspace.h"
#include "mpembed/api.h"
#include "mpembed/cache.h"
#include "mpembed/macros.h"
#include "mpembed/registry_types.h"

MPE_BEGIN

// Uninitialised workspace that is given back at the end of the scope; test with ok().
template <class T>
class Buffer {
 public:
  explicit Buffer(int64_t n)
      : data_(
            static_cast<T*>(mpe::take_workspace(static_cast<size_t>(n > 0 ? n : 1) * sizeof(T)))) {}
  ~Buffer() { mpe::give_workspace(data_); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  bool ok() const { return data_ != nullptr; }
  T* get() const { return data_; }
  T& operator[](int64_t i) const { return data_[i]; }

 private:
  T* data_;
};

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }

// Number of tasks for `work` units, never dependent on the number of threads.
inline int64_t task_count(int64_t work, int64_t grain) {
  const int64_t tasks = ceil_div(work, grain);
  return tasks < 1 ? 1 : (tasks > 256 ? 256 : tasks);
}

// First element of task t when `work` units are cut into `tasks`.
inline int64_t task_begin(int64_t work, int64_t tasks, int64_t t) {
  return work / tasks * t + min64(t, work % tasks);
}

// First i in [0, n] with measure(i) >= target, measure ascending.
template <class Measure>
inline int64_t first_at_least(int64_t n, int64_t target, Measure measure) {
  int64_t lo = 0, hi = n;
  while (lo < hi) {
    const int64_t mid = lo + (hi - lo) / 2;
    if (measure(mid) < target) {
      lo = mid + 1;
    } else {
      hi = mid;
    }
  }
  return lo;
}

inline int64_t unique_count(const mpe_unique& u) { return *u.count; }

// The rows of table t's output or gradient.
inline mpe_matrix matrix_of(const mpe_group& g, const mpe_outputs& o, int64_t t) {
  if (o.tables != nullptr) return o.tables[t];
  return mpe_matrix{o.shared.data + g.tables[t].column, o.shared.stride};
}

// The table that holds a linear row id; `hint` is the table of a nearby id.
inline int32_t find_table(const mpe_group& g, uint64_t key, int32_t hint = 0) {
  const int64_t id = static_cast<int64_t>(key);
  const mpe_table& h = g.tables[hint];
  if (id >= h.base && id - h.base < h.num_rows) return hint;
  return static_cast<int32_t>(first_at_least(g.num_tables - 1, id + 1, [&](int64_t t) {
    return g.tables[t].base + g.tables[t].num_rows;
  }));
}

inline uint8_t* row_address(const mpe_table& table, uint64_t key, int64_t row_bytes) {
  return table.rows + (static_cast<int64_t>(key) - table.base) * row_bytes;
}

inline int64_t row_bytes_of(const mpe_table& table, int64_t dim) {
  return with_format(table.precision, [&](auto f) { return decltype(f)::row_bytes(dim); });
}

inline float* cache_row(const mpe_group& g, int64_t slot) { return g.cache->rows + slot * g.dim; }
inline StoredRow<Fp32> cached_row(const mpe_group& g, int64_t slot) {
  return {reinterpret_cast<const uint8_t*>(cache_row(g, slot)), g.dim};
}

// Asks for the cache lines of a row ahead of its use.
inline void prefetch_bytes(const void* p, int64_t bytes, bool write) {
  // GCC takes a function that only prefetches for one without effects and deletes calls to it.
  __asm__ volatile("");
  const char* line = static_cast<const char*>(p);
  const char* end = line + (bytes < 1024 ? bytes : 1024);
  // Rows that are not whole lines end in any: whether in one more is not worth a branch.
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
  with_format(precision, [&](auto f) { decode_row<decltype(f)>(row, dim, out); });
}

// How many values are not finite or exceed the bound in magnitude (bits of a positive float).
inline int64_t count_beyond(const float* x, int64_t dim, uint32_t max_abs_bits) {
  uint32_t count = 0;
  for (int64_t c = 0; c < dim; ++c) {
    count += (float_bits(x[c]) & 0x7FFFFFFFu) > max_abs_bits ? 1u : 0u;
  }
  return count;
}

// Counts of one task, on their way to the tables' statistics. A task meets some tables of possibly
// many thousand: what it costs must not grow with all of them.
class TaskStats {
 public:
  explicit TaskStats(const mpe_group& g) : g_(g) {}
  ~TaskStats() {
    for (Line& line : lines_) commit(line);
  }
  TaskStats(const TaskStats&) = delete;
  TaskStats& operator=(const TaskStats&) = delete;

  // A table's counters, until those of another are asked for.
  int64_t* of(int32_t table) {
    Line& line = lines_[static_cast<uint32_t>(table) % kLines];
    if (line.table != table) {
      commit(line);
      line.table = table;
    }
    return line.counts;
  }
  void add(int32_t table, int stat) { ++of(table)[stat]; }

 private:
  static constexpr uint32_t kLines = 16;  // a table has one place; the last of a place is kept
  struct Line {
    int32_t table = -1;
    int64_t counts[MPE_NUM_STATS] = {};
  };

  void commit(Line& line) {
    if (line.table < 0) return;
    int64_t* stats = g_.tables[line.table].stats;
    for (int s = 0; s < MPE_NUM_STATS; ++s) {
      const int64_t n = line.counts[s];
      line.counts[s] = 0;
      if (n != 0 && stats != nullptr) __atomic_fetch_add(stats + s, n, __ATOMIC_RELAXED);
    }
  }

  const mpe_group& g_;
  Line lines_[kLines];
};

MPE_END
