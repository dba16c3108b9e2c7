// Admission of the misses of some sets: the victims, their write-back, and the admitted rows.
#pragma once

#include "cpu/noise.h"
#include "cpu/records.h"
#include "cpu/sketch.h"
#include "cpu/stats.h"

MPE_BEGIN

// Writes rows of the cache and their states back to their tables, for one task.
struct WriteBack {
  const mpe_group& group;
  const StateShapes shapes;
  const Slots cached;
  RecordEncoder encoder;
  TaskStats stats;

  // workspace: that of all tasks, allocated before anything changes.
  WriteBack(const mpe_group& group_, const EncoderWorkspace& workspace, int64_t task)
      : group(group_),
        shapes(state_shapes(group_)),
        cached(group_, shapes),
        encoder(group_, shapes, workspace, task),
        stats(group_) {}

  // The slot must not change until the encoder is flushed.
  void add(int64_t slot, uint64_t id, int32_t t) {
    const mpe_table& table = group.tables[t];
    const float* elements[MPE_MAX_STATES];
    for (int i = 0; i < shapes.num_elements; ++i) elements[i] = cached.element(slot, i);
    const int64_t row = static_cast<int64_t>(id) - table.base;
    encoder.add(table, row, cached.row(slot), elements, cached.values(slot));
    stats.add(t, MPE_stat_write_backs);
    const NoiseSample sample(group, table);
    if (sample.has(row)) sample.add_write_back(cached.row(slot));
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
      : admission_(admission),
        write_back_(admission.group, workspace, task),
        prefetch_admitted_(admission.group, write_back_.shapes),
        prefetch_victim_(admission.group, write_back_.shapes) {}
  ~AdmissionTask() { flush(); }

  // Prefetches a row that may be admitted.
  void prefetch(int64_t row) { prefetch_admitted_(admission_.unique.rows[row], false); }

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
    const mpe_table& table = admission_.group.tables[t];
    admitted_[num_admitted_++] = AdmittedRow{&table, static_cast<int64_t>(key) - table.base, slot};
    if (num_admitted_ == kMaxRows) flush();
  }

 private:
  struct AdmittedRow {
    const mpe_table* table;
    int64_t row, slot;
  };

  // Frees the slot for a row of this estimate. False: the row in it stays.
  bool evict(int64_t slot, uint32_t estimate) {
    const mpe_cache& cache = admission_.cache;
    const uint64_t tag = cache.tags[slot], id = tag & kTagIdMask;
    if (id == kTagEmpty) return true;
    if (!Policy::admits(estimate, cache.meta[slot])) return false;
    write_back_.cached.prefetch(slot, true);
    const int32_t t = find_table(admission_.group, id);
    write_back_.stats.add(t, MPE_stat_evictions);
    if ((tag & kTagDirty) != 0) {
      prefetch_victim_(id, t, true);
      write_back_.add(slot, id, t);
    }
    if constexpr (Policy::kSketch) {
      sketch_raise(cache, splitmix64(id), Policy::on_evict(cache.meta[slot]));
    }
    return true;
  }

  // Writes the victims back, then reads the admitted rows and their states into their slots.
  void flush() {
    write_back_.encoder.flush();
    for (int i = 0; i < num_admitted_; ++i) read(admitted_[i]);
    num_admitted_ = 0;
  }
  void read(const AdmittedRow& admitted) const {
    const mpe_table& table = *admitted.table;
    const StateShapes& shapes = write_back_.shapes;
    const Slots& cached = write_back_.cached;
    const int64_t dim = admission_.group.dim, row = admitted.row, slot = admitted.slot;
    before_write(admission_.cache, slot);
    decode(table.precision, table.rows + row * table.row_stride, dim, cached.row(slot));
    for (int i = 0; i < shapes.num_elements; ++i) {
      decode_state(table.states[shapes.element[i]], row, dim, cached.element(slot, i));
    }
    for (int i = 0; i < shapes.num_values; ++i) {
      cached.values(slot)[i] = load_value(table.states[shapes.value[i]], row);
    }
  }

  const Admission& admission_;
  WriteBack write_back_;
  RecordPrefetch prefetch_admitted_, prefetch_victim_;
  int num_admitted_ = 0;
  AdmittedRow admitted_[kMaxRows];
};

MPE_END
