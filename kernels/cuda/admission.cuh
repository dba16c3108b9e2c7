// Admission's types: a set whose misses get ways, and the rows that move as a result.
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

  __device__ uint32_t clock() const { return static_cast<uint32_t>(cache.counters[0]); }
  __device__ int64_t count() const { return *unique.count; }
};

// The outcome of a miss: the old tag of the slot that it takes, or one of these two, which are no
// tags of slots that can be taken.
constexpr uint64_t kConflict = kTagEmpty | kTagPin;
constexpr uint64_t kRejected = kTagEmpty | (2 * kTagPin);

// One set's tags and policy state; each lane holds one way.
template <class Policy>
class Set {
 public:
  __device__ void load(const mpe_cache& cache, int64_t set) {
    first_ = set * cache.ways;
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
    uint32_t best = free ? rank : UINT32_MAX;
    for (int s = kWarp / 2; s > 0; s >>= 1) {
      const uint32_t other = __shfl_xor_sync(kFullMask, best, s);
      best = other < best ? other : best;
    }
    return __ffs(static_cast<int>(__ballot_sync(kFullMask, free && rank == best))) - 1;
  }

  // Step 4 for one miss, without moving rows; returns its outcome.
  __device__ uint64_t admit(const Admission& admission, uint32_t clock, int64_t u, uint64_t key,
                            uint32_t estimate) {
    const int way = choose(clock);
    if (way < 0) return kConflict;
    const uint64_t old = __shfl_sync(kFullMask, static_cast<unsigned long long>(tag_), way);
    if ((old & kTagIdMask) != kTagEmpty) {
      const uint32_t state = __shfl_sync(kFullMask, meta_, way);
      if (!Policy::admits(estimate, state)) return kRejected;
      if constexpr (Policy::kSketch) {
        if (lane_index() < static_cast<int>(kSketchRows)) {
          sketch_raise(admission.cache, old & kTagIdMask, static_cast<uint32_t>(lane_index()),
                       Policy::on_evict(state));
        }
      }
    }
    if (lane_index() == way) {
      const int64_t slot = first_ + way;
      tag_ = key | kTagPin;
      meta_ = Policy::on_admit(clock, estimate);
      admission.cache.tags[slot] = tag_;
      admission.cache.meta[slot] = meta_;
      admission.slots[u] = static_cast<int32_t>(slot);
    }
    return old;
  }

 private:
  int64_t first_;
  bool way_;
  uint64_t tag_;
  uint32_t meta_;
};

// The misses by set, within a set by row.
struct Misses {
  const uint32_t* sets;
  const int32_t* order;
  const uint32_t* estimates;
  uint64_t* outcomes;
};

// A miss, the same in all lanes. set: num_sets beyond the last miss.
struct Miss {
  uint64_t key;
  uint32_t set, estimate;
  int32_t u;

  template <class Policy>
  static __device__ Miss load(const Admission& admission, const Misses& misses, int64_t i) {
    Miss miss{0, static_cast<uint32_t>(admission.cache.num_sets), 0, 0};
    if (i < admission.n) miss.set = misses.sets[i];
    if (miss.set == admission.cache.num_sets) return miss;
    miss.u = misses.order[i];
    miss.key = admission.unique.rows[miss.u];
    if (Policy::kSketch) miss.estimate = misses.estimates[i];
    return miss;
  }
  template <class Policy>
  __device__ Miss from(int lane) const {
    return Miss{__shfl_sync(kFullMask, static_cast<unsigned long long>(key), lane),
                __shfl_sync(kFullMask, set, lane),
                Policy::kSketch ? __shfl_sync(kFullMask, estimate, lane) : 0,
                __shfl_sync(kFullMask, u, lane)};
  }
};

// A miss that takes a slot, the same in all lanes of its tile.
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
