// LRU: a slot's state is the clock at its last use; everything is admitted.
#ifndef MPEMBED_POLICY_LRU_H
#define MPEMBED_POLICY_LRU_H

#include "mpembed/macros.h"

MPE_BEGIN

struct Lru {
  static constexpr bool kSketch = false;

  static MPE_HD uint32_t on_hit(uint32_t, uint32_t clock) { return clock; }
  static MPE_HD uint32_t on_admit(uint32_t clock, uint32_t) { return clock; }
  // The way with the smallest rank is the victim; ties go to the lowest way.
  static MPE_HD uint32_t rank(uint32_t state, uint32_t clock) { return ~(clock - state); }
  static MPE_HD bool admits(uint32_t, uint32_t) { return true; }
};

MPE_END

#endif
