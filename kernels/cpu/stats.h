// The tables' statistics, counted by many tasks at once.
#pragma once

#include <cstdint>

#include "mpembed/api.h"
#include "mpembed/macros.h"

MPE_BEGIN

// Counts of one task on their way to the tables' statistics. There may be thousands of tables, of
// which a task meets a few: its cost must not grow with all of them.
class TaskStats {
 public:
  explicit TaskStats(const mpe_group& group) : group_(group) {}
  ~TaskStats() {
    for (Entry& entry : entries_) commit(entry);
  }
  TaskStats(const TaskStats&) = delete;
  TaskStats& operator=(const TaskStats&) = delete;

  // A table's counters; valid until another table's are asked for.
  int64_t* counters(int32_t table) {
    Entry& entry = entries_[static_cast<uint32_t>(table) % kEntries];
    if (entry.table != table) {
      commit(entry);
      entry.table = table;
    }
    return entry.counts;
  }
  void add(int32_t table, int stat) { ++counters(table)[stat]; }

 private:
  static constexpr uint32_t kEntries = 16;  // direct-mapped by the table's number
  struct Entry {
    int32_t table = -1;
    int64_t counts[MPE_NUM_STATS] = {};
  };

  void commit(Entry& entry) {
    if (entry.table < 0) return;
    int64_t* stats = group_.tables[entry.table].stats;
    for (int i = 0; i < MPE_NUM_STATS; ++i) {
      const int64_t n = entry.counts[i];
      entry.counts[i] = 0;
      if (n != 0 && stats != nullptr) __atomic_fetch_add(stats + i, n, __ATOMIC_RELAXED);
    }
  }

  const mpe_group& group_;
  Entry entries_[kEntries];
};

MPE_END
