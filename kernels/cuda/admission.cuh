// Admission's types: the misses of a set, the ways that they get, and the rows that move then.
#pragma once

#include "cuda/probe.cuh"
#include "cuda/sketch.cuh"
#include "cuda/slot.cuh"

namespace mpembed {
namespace cuda {

struct Admission {
  Tables tables;
  Rounding rounding;
  mpe_cache cache;
  mpe_unique unique;
  int64_t n;  // room for unique rows
  int32_t* slots;

  // This admission's: the counter itself changes when no kernel reads it any more.
  __device__ uint32_t clock() const { return static_cast<uint32_t>(cache.counters[0] + 1); }
  __device__ int64_t count() const { return *unique.count; }
};

// A miss that takes a slot. old: the slot's tag before.
struct Admitted {
  uint64_t key, old;
  int32_t slot;
};

// The misses of a batch: a list a set, in no particular order.
struct Misses {
  // Zero at the start.
  uint32_t* first;  // one a set: the unique row at the head of its list, plus one; 0: none
  struct Counts {
    uint32_t sets, admitted, rows;  // of the arrays below
    int32_t halved;                 // blocks
  }* counts;
  // One a unique row.
  uint32_t* next;       // in its list, as `first`
  uint32_t* estimates;  // of policies with a sketch
  int32_t* rows;        // of long lists, each in one piece
  // Each as many as there are unique rows or sets, or rows or slots, whichever are fewer.
  uint32_t* sets;  // that have misses
  Admitted* admitted;
};

__device__ inline uint32_t warp_min(uint32_t v) {
  for (int s = kWarp / 2; s > 0; s >>= 1) {
    const uint32_t other = __shfl_xor_sync(kFullMask, v, s);
    v = other < v ? other : v;
  }
  return v;
}

// One set's tags and policy state; each lane holds one way.
template <class Policy>
class Set {
 public:
  __device__ Set(const mpe_cache& cache, int64_t set) : cache_(cache), first_(set * cache.ways) {
    way_ = lane_index() < cache.ways;
    tag_ = way_ ? cache.tags[first_ + lane_index()] : 0;
    meta_ = way_ ? cache.meta[first_ + lane_index()] : 0;
  }

  // The way to fill for a miss, or -1: the lowest empty one, else the victim with the smallest
  // rank.
  __device__ int choose(uint32_t clock) const {
    const bool empty = way_ && (tag_ & kTagIdMask) == kTagEmpty;
    const unsigned empties = __ballot_sync(kFullMask, empty);
    if (empties != 0) return __ffs(static_cast<int>(empties)) - 1;
    const bool free = way_ && (tag_ & kTagPinMask) == 0;
    const uint32_t rank = free ? Policy::rank(meta_, clock) : 0;
    const unsigned candidates = __ballot_sync(kFullMask, free);
    if (candidates == 0) return -1;
    const uint32_t best = warp_min(free ? rank : UINT32_MAX);
    return __ffs(static_cast<int>(__ballot_sync(kFullMask, free && rank == best))) - 1;
  }
  __device__ uint64_t tag(int way) const {
    return __shfl_sync(kFullMask, static_cast<unsigned long long>(tag_), way);
  }
  __device__ uint32_t state(int way) const { return __shfl_sync(kFullMask, meta_, way); }

  // Gives the way to a row; returns its slot.
  __device__ int32_t fill(int way, uint64_t key, uint32_t clock, uint32_t estimate) {
    const int64_t slot = first_ + way;
    if (lane_index() == way) {
      tag_ = key | kTagPin;
      meta_ = Policy::on_admit(clock, estimate);
      cache_.tags[slot] = tag_;
      cache_.meta[slot] = meta_;
    }
    return static_cast<int32_t>(slot);
  }

 private:
  const mpe_cache& cache_;
  int64_t first_;
  bool way_;
  uint64_t tag_;
  uint32_t meta_;
};

// The misses of one set, for a warp: up to 32 lie in its lanes, more in an array. None is -1.
class MissList {
 public:
  __device__ MissList(const Admission& admission, const Misses& misses, uint32_t set)
      : keys_(admission.unique.rows), rows_(nullptr), key_(0), mine_(-1), count_(0) {
    const uint32_t head = misses.first[set];
    for (uint32_t at = head; at != 0; at = misses.next[at - 1], ++count_) {
      if (count_ == lane_index()) mine_ = static_cast<int32_t>(at - 1);
    }
    if (mine_ >= 0) key_ = keys_[mine_];
    if (count_ <= kWarp) return;
    uint32_t begin = 0;
    if (lane_index() == 0) begin = atomicAdd(&misses.counts->rows, static_cast<uint32_t>(count_));
    rows_ = misses.rows + __shfl_sync(kFullMask, begin, 0);
    int i = 0;
    for (uint32_t at = head; at != 0; at = misses.next[at - 1], ++i) {
      if ((i & (kWarp - 1)) == lane_index()) rows_[i] = static_cast<int32_t>(at - 1);
    }
  }

  __device__ int count() const { return count_; }
  // Of a miss that is the same in all lanes.
  __device__ uint64_t key(uint32_t u) const {
    const unsigned owner = __ballot_sync(kFullMask, mine_ == static_cast<int32_t>(u));
    if (owner == 0) return keys_[u];
    return __shfl_sync(kFullMask, static_cast<unsigned long long>(key_),
                       __ffs(static_cast<int>(owner)) - 1);
  }
  // Calls visit(u) in all lanes at once, each with a miss of its own or -1, until all had their
  // turn.
  template <class Visit>
  __device__ __forceinline__ void each(Visit visit) const {
    if (count_ <= kWarp) return visit(mine_);
    for (int i = lane_index(); i - lane_index() < count_; i += kWarp) {
      visit(i < count_ ? rows_[i] : -1);  // a lane reads what it has written
    }
  }

 private:
  const uint64_t* keys_;
  int32_t* rows_;
  uint64_t key_;  // of mine_
  int32_t mine_;
  int count_;
};

// A move of a row, the same in all lanes of its tile.
struct Move {
  uint64_t key, old;
  int32_t slot, table, owner;

  __device__ Move from(const Tile& tile, int lane) const {
    return Move{tile.shuffle(key, lane), tile.shuffle(old, lane), tile.shuffle(slot, lane),
                tile.shuffle(table, lane), tile.shuffle(owner, lane)};
  }
};

template <bool kLong>
__device__ __forceinline__ void move_row(const Admission& admission, const Tile& tile,
                                         const Move& move) {
  const Tables& tables = admission.tables;
  const Slot slot{tables, admission.cache, move.slot};
  if ((move.old & kTagDirty) != 0) {
    write_back<kLong>(tile, tables, admission.rounding, move.old & kTagIdMask, move.owner, slot);
  }
  const mpe_table& table = tables.table[move.table];
  read_in<kLong>(tile, tables, table, static_cast<int64_t>(move.key) - table.base, slot);
}

}  // namespace cuda
}  // namespace mpembed
