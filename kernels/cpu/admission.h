// Admission of the misses of some sets: the victims, their write-back, and the admitted rows.
#pragma once

#include "cpu/encode.h"
#include "cpu/sketch.h"
#include "cpu/stats.h"

MPE_BEGIN

// Writes rows of the cache back to their tables, for one task.
struct WriteBack {
  const mpe_group& group;
  RowEncoder encoder;
  TaskStats stats;

  // workspace: that of all tasks, allocated before anything changes.
  WriteBack(const mpe_group& group_, const EncoderWorkspace& workspace, int64_t task)
      : group(group_), encoder(group_, kDomainRow, workspace, task), stats(group_) {}

  // The slot's row must not change until the encoder is flushed.
  void add(int64_t slot, uint64_t id, int32_t t) {
    const mpe_table& table = group.tables[t];
    encoder.add(table, static_cast<int64_t>(id) - table.base, cache_row(group, slot));
    stats.add(t, MPE_stat_write_backs);
  }
};

struct Admission {
  const mpe_group& group;
  const mpe_cache& cache;
  const mpe_unique& unique;
  int64_t count;
  int32_t* slots;
  uint32_t clock;
};

// A miss, in the order of their sorting: set << 32 | unique row.
inline uint64_t make_miss(int64_t set, int64_t row) {
  return static_cast<uint64_t>(set) << 32 | static_cast<uint64_t>(row);
}
inline int64_t miss_set(uint64_t miss) { return static_cast<int64_t>(miss >> 32); }
inline int64_t miss_row(uint64_t miss) { return static_cast<int64_t>(miss & 0xFFFFFFFFu); }

// The way to fill for a miss, or -1: the lowest empty way, else the victim of the smallest rank.
template <class Policy>
int32_t choose_way(const mpe_cache& cache, int64_t first_slot, uint32_t clock) {
  constexpr uint64_t kNone = ~uint64_t{0};
  constexpr uint64_t kWayBits = 8;  // below the rank: of equal ranks the lowest way
  uint64_t best = kNone;
  for (int32_t way = 0; way < cache.ways; ++way) {
    const uint64_t tag = cache.tags[first_slot + way];
    const uint64_t rank = uint64_t{Policy::rank(cache.meta[first_slot + way], clock)} + 1;
    uint64_t candidate = rank << kWayBits | static_cast<uint64_t>(way);
    candidate = (tag & kTagPinMask) != 0 ? kNone : candidate;
    candidate = (tag & kTagIdMask) == kTagEmpty ? static_cast<uint64_t>(way) : candidate;
    best = candidate < best ? candidate : best;
  }
  return best == kNone ? -1 : static_cast<int32_t>(best & ((1u << kWayBits) - 1));
}

// Step 4 of admission for one task's sets. Several victims are written back and several admitted
// rows read at a time. Their order does not matter, because a victim is never a row of the batch.
template <class Policy>
class AdmissionTask {
 public:
  AdmissionTask(const Admission& admission, const EncoderWorkspace& workspace, int64_t task)
      : admission_(admission), write_back_(admission.group, workspace, task) {}
  ~AdmissionTask() { flush(); }

  // Prefetches a row that may be admitted.
  void prefetch(int64_t row) {
    const uint64_t key = admission_.unique.rows[row];
    const int32_t t = find_table(admission_.group, key, prefetched_table_);
    prefetch_bytes(stored_row(key, t), row_bytes_of(admission_.group.tables[t], dim()), false);
    prefetched_table_ = t;
  }

  void admit(uint64_t miss, uint32_t estimate) {
    const int64_t row = miss_row(miss);
    const uint64_t key = admission_.unique.rows[row];
    const int32_t t = find_table(admission_.group, key);
    const int64_t first_slot = miss_set(miss) * admission_.cache.ways;
    const int32_t way = choose_way<Policy>(admission_.cache, first_slot, admission_.clock);
    if (way < 0) {
      write_back_.stats.add(t, MPE_stat_conflict_misses);
      return;
    }
    const int64_t slot = first_slot + way;
    if (!evict(slot, estimate)) {
      write_back_.stats.add(t, MPE_stat_rejected);
      return;
    }
    admission_.cache.tags[slot] = key | kTagPin;
    admission_.cache.meta[slot] = Policy::on_admit(admission_.clock, estimate);
    admission_.slots[row] = static_cast<int32_t>(slot);
    admitted_[num_admitted_++] =
        AdmittedRow{stored_row(key, t), slot, admission_.group.tables[t].precision};
    if (num_admitted_ == kMaxRows) flush();
  }

 private:
  struct AdmittedRow {
    const uint8_t* stored;
    int64_t slot;
    int32_t precision;
  };

  int32_t dim() const { return admission_.group.dim; }
  const uint8_t* stored_row(uint64_t key, int32_t t) const {
    const mpe_table& table = admission_.group.tables[t];
    return row_address(table, key, row_bytes_of(table, dim()));
  }

  // Frees the slot for a row of this estimate. False: the row in it stays.
  bool evict(int64_t slot, uint32_t estimate) {
    const mpe_cache& cache = admission_.cache;
    const uint64_t tag = cache.tags[slot], id = tag & kTagIdMask;
    if (id == kTagEmpty) return true;
    if (!Policy::admits(estimate, cache.meta[slot])) return false;
    prefetch_bytes(cache_row(admission_.group, slot), dim() * 4, true);
    const int32_t t = find_table(admission_.group, id);
    write_back_.stats.add(t, MPE_stat_evictions);
    if ((tag & kTagDirty) != 0) write_back_.add(slot, id, t);
    if (Policy::kSketch) sketch_raise(cache, splitmix64(id), cache.meta[slot]);
    return true;
  }

  // Writes the victims back, then reads the admitted rows into their slots.
  void flush() {
    write_back_.encoder.flush();
    for (int i = 0; i < num_admitted_; ++i) {
      const AdmittedRow& row = admitted_[i];
      decode(row.precision, row.stored, dim(), cache_row(admission_.group, row.slot));
    }
    num_admitted_ = 0;
  }

  const Admission& admission_;
  WriteBack write_back_;
  int32_t prefetched_table_ = 0;  // the table of the last row that was prefetched
  int num_admitted_ = 0;
  AdmittedRow admitted_[kMaxRows];
};

MPE_END
