// Admission of the misses of some sets: victims, their write-back, and the newcomers' rows.
#pragma once

#include "cpu/encode.h"
#include "cpu/sketch.h"

MPE_BEGIN

// Writes rows of the cache back to their tables, for one task.
struct WriteBack {
  const mpe_group& g;
  RowEncoder encoder;
  TaskStats stats;

  // space: for every task, allocated before anything changes.
  WriteBack(const mpe_group& group, const EncoderSpace& space, int64_t task)
      : g(group), encoder(group, kDomainRow, space, task), stats(group) {}

  // The slot's row must stay until the encoder is flushed.
  void add(int64_t slot, uint64_t id, int32_t t) {
    const mpe_table& table = g.tables[t];
    encoder.add(table, static_cast<int64_t>(id) - table.base, cache_row(g, slot));
    stats.add(t, MPE_stat_write_backs);
  }
};

struct Admission {
  const mpe_group& g;
  const mpe_cache& c;
  const mpe_unique& u;
  int64_t count;
  int32_t* slots;
  uint32_t clock;
};

// A miss, as they are sorted: set << 32 | unique row.
inline int64_t miss_set(uint64_t miss) { return static_cast<int64_t>(miss >> 32); }
inline int64_t miss_row(uint64_t miss) { return static_cast<int64_t>(miss & 0xFFFFFFFFu); }

// Way to fill for a miss, or -1: the lowest empty way, else the victim with the smallest rank.
template <class P>
int32_t choose_way(const mpe_cache& c, int64_t first, uint32_t clock) {
  constexpr uint64_t kNone = ~uint64_t{0};
  constexpr uint64_t kWayBits = 8;  // below the rank: of equal ranks the lowest way
  uint64_t best = kNone;
  for (int32_t way = 0; way < c.ways; ++way) {
    const uint64_t tag = c.tags[first + way];
    const uint64_t rank = uint64_t{P::rank(c.meta[first + way], clock)} + 1;
    uint64_t here = rank << kWayBits | static_cast<uint64_t>(way);
    here = (tag & kTagPinMask) != 0 ? kNone : here;
    here = (tag & kTagIdMask) == kTagEmpty ? static_cast<uint64_t>(way) : here;
    best = here < best ? here : best;
  }
  return best == kNone ? -1 : static_cast<int32_t>(best & ((1u << kWayBits) - 1));
}

// Step 4 of one task's sets. Victims are written back and newcomers read several at a time: a
// victim is no row of the batch, so that the order of the two does not matter.
template <class P>
class Admitter {
 public:
  Admitter(const Admission& a, const EncoderSpace& space, int64_t task)
      : a_(a), write_back_(a.g, space, task) {}
  ~Admitter() { settle(); }

  // Asks for a row ahead of its admission.
  void prefetch(int64_t unique) {
    const uint64_t key = a_.u.rows[unique];
    const int32_t t = find_table(a_.g, key, ahead_);
    prefetch_bytes(stored(key, t), row_bytes_of(a_.g.tables[t], a_.g.dim), false);
    ahead_ = t;
  }

  void admit(uint64_t miss, uint32_t estimate) {
    const int64_t unique = miss_row(miss);
    const uint64_t key = a_.u.rows[unique];
    const int32_t t = find_table(a_.g, key);
    const int64_t first = miss_set(miss) * a_.c.ways;
    const int32_t way = choose_way<P>(a_.c, first, a_.clock);
    if (way < 0) {
      write_back_.stats.add(t, MPE_stat_conflict_misses);
      return;
    }
    const int64_t slot = first + way;
    if (!evict(slot, estimate)) {
      write_back_.stats.add(t, MPE_stat_rejected);
      return;
    }
    a_.c.tags[slot] = key | kTagPin;
    a_.c.meta[slot] = P::on_admit(a_.clock, estimate);
    a_.slots[unique] = static_cast<int32_t>(slot);
    newcomers_[n_++] = Newcomer{stored(key, t), slot, a_.g.tables[t].precision};
    if (n_ == kMaxRows) settle();
  }

 private:
  struct Newcomer {
    const uint8_t* row;
    int64_t slot;
    int32_t precision;
  };

  const uint8_t* stored(uint64_t key, int32_t t) const {
    const mpe_table& table = a_.g.tables[t];
    return row_address(table, key, row_bytes_of(table, a_.g.dim));
  }

  // Whether the slot is free for a row of this estimate.
  bool evict(int64_t slot, uint32_t estimate) {
    const uint64_t old = a_.c.tags[slot], id = old & kTagIdMask;
    if (id == kTagEmpty) return true;
    if (!P::admits(estimate, a_.c.meta[slot])) return false;
    prefetch_bytes(cache_row(a_.g, slot), a_.g.dim * 4, true);
    const int32_t owner = find_table(a_.g, id);
    write_back_.stats.add(owner, MPE_stat_evictions);
    if ((old & kTagDirty) != 0) write_back_.add(slot, id, owner);
    if (P::kSketch) sketch_raise(a_.c, splitmix64(id), a_.c.meta[slot]);
    return true;
  }

  void settle() {
    write_back_.encoder.flush();
    for (int i = 0; i < n_; ++i) {
      const Newcomer& one = newcomers_[i];
      decode(one.precision, one.row, a_.g.dim, cache_row(a_.g, one.slot));
    }
    n_ = 0;
  }

  const Admission& a_;
  WriteBack write_back_;
  int32_t ahead_ = 0;  // the table of the last row asked for
  int n_ = 0;
  Newcomer newcomers_[kMaxRows];
};

MPE_END
