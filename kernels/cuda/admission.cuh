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
  // Zero at the start, `sets` as well.
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
  uint32_t* sets;  // that have misses; with room for those of a whole block
  Admitted* admitted;
};

// Eight lanes have a set, and each four of its ways: a warp that waits for the loads of four sets
// at once is worth the loops over a lane's ways. The warp's lanes call everything together,
// whichever set they have, so that no set waits for another one's branch.
constexpr int32_t kSetShift = 3;
constexpr int kSetLanes = 1 << kSetShift, kLaneWays = kWarp / kSetLanes;

struct SetLanes {
  int lane = lane_index() & (kSetLanes - 1);

  __device__ __forceinline__ uint32_t shuffle(uint32_t v, int from) const {
    return __shfl_sync(kFullMask, v, from, kSetLanes);
  }
  __device__ __forceinline__ uint64_t shuffle(uint64_t v, int from) const {
    return __shfl_sync(kFullMask, static_cast<unsigned long long>(v), from, kSetLanes);
  }
  // A bit a lane.
  __device__ __forceinline__ unsigned ballot(bool v) const {
    return __ballot_sync(kFullMask, v) >> (lane_index() - lane) & ((1u << kSetLanes) - 1);
  }
  __device__ __forceinline__ uint32_t smallest(uint32_t v) const {
    MPE_UNROLL
    for (int s = kSetLanes / 2; s > 0; s >>= 1) {
      const uint32_t other = __shfl_xor_sync(kFullMask, v, s);
      v = other < v ? other : v;
    }
    return v;
  }
};

// One set's tags and policy state: way j * kSetLanes + lane is a lane's j-th.
template <class Policy>
class Set {
 public:
  __device__ __forceinline__ Set(const mpe_cache& cache, int64_t set)
      : cache_(cache), first_(set * cache.ways) {
    MPE_UNROLL
    for (int j = 0; j < kLaneWays; ++j) {
      const bool exists = way(j) < cache.ways;
      tags_[j] = exists ? cache.tags[first_ + way(j)] : kNoWay;
      meta_[j] = exists ? cache.meta[first_ + way(j)] : 0;
    }
  }

  // The way to fill for a miss, or -1: the lowest empty one, else the victim with the smallest
  // rank.
  __device__ __forceinline__ int choose(uint32_t clock) const {
    int empty = -1;
    bool some = false;
    MPE_UNROLL
    for (int j = 0; j < kLaneWays; ++j) some = some || is_empty(j);
    if (!kModel && __any_sync(kFullMask, some) != 0) {  // never again once the cache is full
      empty = lowest([&](int j) { return is_empty(j); });
    }
    uint32_t ranks[kLaneWays], least = UINT32_MAX;
    MPE_UNROLL
    for (int j = 0; j < kLaneWays; ++j) {
      ranks[j] = is_free(j) ? Policy::rank(meta_[j], clock) : UINT32_MAX;
      least = ranks[j] < least ? ranks[j] : least;
    }
    least = lanes_.smallest(least);
    const int victim = lowest([&](int j) { return is_free(j) && ranks[j] == least; });
    return empty >= 0 ? empty : victim;
  }
  // Of a way that is the same in all lanes.
  __device__ __forceinline__ uint64_t tag(int chosen) const {
    uint64_t mine = 0;
    MPE_UNROLL
    for (int j = 0; j < kLaneWays; ++j) mine |= tags_[j] & all_bits<uint64_t>(chosen, j);
    return lanes_.shuffle(mine, chosen % kSetLanes);
  }
  __device__ __forceinline__ uint32_t state(int chosen) const {
    uint32_t mine = 0;
    MPE_UNROLL
    for (int j = 0; j < kLaneWays; ++j) mine |= meta_[j] & all_bits<uint32_t>(chosen, j);
    return lanes_.shuffle(mine, chosen % kSetLanes);
  }

  // Gives the way to a row; returns its slot.
  __device__ __forceinline__ int32_t fill(int chosen, uint64_t key, uint32_t clock,
                                          uint32_t estimate) {
    const int64_t slot = first_ + chosen;
    const uint64_t tag = key | kTagPin;
    const uint32_t meta = Policy::on_admit(clock, estimate);
    MPE_UNROLL
    for (int j = 0; j < kLaneWays; ++j) {
      tags_[j] = way(j) == chosen ? tag : tags_[j];
      meta_[j] = way(j) == chosen ? meta : meta_[j];
    }
    if (chosen % kSetLanes == lanes_.lane) {
      cache_.tags[slot] = tag;
      cache_.meta[slot] = meta;
    }
    return static_cast<int32_t>(slot);
  }

 private:
  // A tag of what is neither empty nor free.
  static constexpr uint64_t kNoWay = kTagPinMask;

  __device__ __forceinline__ int way(int j) const { return j * kSetLanes + lanes_.lane; }
  // Set if a way is the j-th of its lane. A branch would make the compiler index by the way, in
  // local memory.
  template <class T>
  static __device__ __forceinline__ T all_bits(int way, int j) {
    return T{0} - static_cast<T>(way / kSetLanes == j);
  }
  __device__ __forceinline__ bool is_empty(int j) const {
    return (tags_[j] & kTagIdMask) == kTagEmpty;
  }
  __device__ __forceinline__ bool is_free(int j) const { return (tags_[j] & kTagPinMask) == 0; }
  // The lowest way for which holds(j), or -1.
  template <class Holds>
  __device__ __forceinline__ int lowest(Holds holds) const {
    int found = -1;
    MPE_UNROLL
    for (int j = kLaneWays - 1; j >= 0; --j) {
      const unsigned lanes = lanes_.ballot(holds(j));
      found = lanes != 0 ? j * kSetLanes + __ffs(static_cast<int>(lanes)) - 1 : found;
    }
    return found;
  }

  const SetLanes lanes_;
  const mpe_cache& cache_;
  int64_t first_;
  uint64_t tags_[kLaneWays];
  uint32_t meta_[kLaneWays];
};

// The misses of one set: up to one a lane lies in the lanes, more in an array. None is -1.
class MissList {
 public:
  // head: as Misses has it.
  __device__ __forceinline__ MissList(const Admission& admission, const Misses& misses,
                                      uint32_t head)
      : admission_(admission), misses_(misses) {
    for (uint32_t at = head; at != 0; ++count_) {
      const uint32_t u = at - 1;
      at = misses.next[u];
      if (count_ != lane()) continue;
      mine_ = static_cast<int32_t>(u);
      key_ = admission.unique.rows[u];
    }
    const bool is_long = count_ > kSetLanes;
    if (kModel || __any_sync(kFullMask, is_long) == 0) return;
    if (is_long && lanes_.lane == 0) {
      begin_ = atomicAdd(&misses.counts->rows, count_);
    }
    begin_ = lanes_.shuffle(begin_, 0);
    uint32_t i = 0;
    for (uint32_t at = is_long ? head : 0; at != 0; at = misses.next[at - 1], ++i) {
      if ((i & (kSetLanes - 1)) != lane()) continue;
      misses.rows[begin_ + i] = static_cast<int32_t>(at - 1);
    }
  }

  __device__ __forceinline__ uint32_t count() const { return count_; }
  // The first + lane-th.
  __device__ __forceinline__ int32_t at(uint32_t first) const {
    if (kModel || count_ <= kSetLanes) return first == 0 ? mine_ : -1;
    const uint32_t i = first + lane();
    return i < count_ ? misses_.rows[begin_ + i] : -1;  // a lane reads what it has written
  }
  // Calls visit(u) for all of the lane's.
  template <class Visit>
  __device__ __forceinline__ void each(Visit visit) const {
    for (uint32_t first = 0; first < count_; first += kSetLanes) visit(at(first));
  }
  // Of a miss that is the same in all lanes of its set; 0 for UINT32_MAX.
  __device__ __forceinline__ uint64_t key(uint32_t u) const {
    const unsigned owner = lanes_.ballot(mine_ == static_cast<int32_t>(u));
    const uint64_t found = lanes_.shuffle(key_, lane_of(owner));
    return kModel || owner != 0 ? found : u == UINT32_MAX ? 0 : admission_.unique.rows[u];
  }

 private:
  __device__ __forceinline__ uint32_t lane() const { return static_cast<uint32_t>(lanes_.lane); }

  const SetLanes lanes_;
  const Admission& admission_;
  const Misses& misses_;
  uint64_t key_ = 0;  // of mine_
  int32_t mine_ = -1;
  uint32_t begin_ = 0;  // of a long list in the array
  uint32_t count_ = 0;
};

// The admitted misses of a set, one a lane, until there are as many as lanes.
class AdmittedRows {
 public:
  __device__ __forceinline__ explicit AdmittedRows(const Misses& misses)
      : misses_(misses), mine_{0, 0, -1}, count_(0) {}
  // Of one set, not of all: no collective. Returns whether the lane keeps it.
  __device__ __forceinline__ bool add(const Admitted& admitted) {
    const bool keeps = lanes_.lane == count_++;
    if (keeps) mine_ = admitted;
    return keeps;
  }
  // Writes them if there are so many.
  __device__ __forceinline__ void write(int least) {
    const bool writes = count_ >= least;
    if (__any_sync(kFullMask, writes) == 0) return;
    uint32_t begin = 0;
    if (writes && lanes_.lane == 0) {
      begin = atomicAdd(&misses_.counts->admitted, static_cast<uint32_t>(count_));
    }
    begin = lanes_.shuffle(begin, 0);
    if (!writes) return;
    if (lanes_.lane < count_) misses_.admitted[begin + lanes_.lane] = mine_;
    count_ = 0;
  }

 private:
  const SetLanes lanes_;
  const Misses& misses_;
  Admitted mine_;
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
