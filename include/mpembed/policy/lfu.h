// LFU: a slot's state is its count; a row is admitted if the count-min sketch has seen it more
// often than the victim. Counts live with the slots, the sketch remembers rows that are not cached.
// Both end at the same maximum: a slot that is no longer used falls behind at the next halving.
// The sketch is updated conservatively: a miss raises only those of its cells that hold the
// estimate (Estan and Varghese, 2002), which keeps rows that share cells apart for longer.
#ifndef MPEMBED_POLICY_LFU_H
#define MPEMBED_POLICY_LFU_H

#include "mpembed/contract.h"
#include "mpembed/macros.h"

MPE_BEGIN

constexpr uint32_t kSketchRows = MPE_SKETCH_ROWS;
constexpr uint32_t kSketchMax = MPE_MAX_COUNT;
constexpr uint64_t kHalvingPeriod = MPE_HALVING_PERIOD;

struct Lfu {
  static constexpr bool kSketch = true;

  // A count after one more use.
  static MPE_HD uint32_t next(uint32_t count) {
    return count < kSketchMax ? count + 1u : kSketchMax;
  }
  static MPE_HD uint32_t on_hit(uint32_t state, uint32_t) { return next(state); }
  static MPE_HD uint32_t on_admit(uint32_t, uint32_t estimate) { return estimate; }
  static MPE_HD uint32_t rank(uint32_t state, uint32_t) { return state; }
  static MPE_HD bool admits(uint32_t estimate, uint32_t victim_state) {
    return estimate > victim_state;
  }
  // Of a policy with a sketch: to what an evicted row's cells are raised; and what remains of a
  // slot's state when the sketch is halved, so that recent use counts more than old use.
  static MPE_HD uint32_t on_evict(uint32_t state) { return state; }
  static MPE_HD uint32_t halve(uint32_t state) { return state >> 1; }
};

MPE_END

#endif
