// The set-associative cache's tags and probe (docs/numerics.md, section 6).
#ifndef MPEMBED_CACHE_H
#define MPEMBED_CACHE_H

#include "mpembed/contract.h"
#include "mpembed/hash.h"
#include "mpembed/macros.h"

MPE_BEGIN

constexpr uint64_t kTagIdMask = MPE_ID_MASK;
constexpr uint64_t kTagEmpty = MPE_EMPTY_TAG;
constexpr uint64_t kTagPin = MPE_ONE_PIN;
constexpr uint64_t kTagPinMask = MPE_PIN_MASK;
constexpr uint64_t kTagDirty = MPE_DIRTY_BIT;

// The way of `id` in its set, or -1.
MPE_HD int32_t probe_set(const uint64_t* tags, int32_t ways, uint64_t id) {
  int32_t way = -1;
  for (int32_t i = 0; i < ways; ++i) way = (tags[i] & kTagIdMask) == id ? i : way;
  return way;
}

MPE_HD int64_t set_of(uint64_t id, int64_t num_sets) {
  return static_cast<int64_t>(cache_set(splitmix64(id), static_cast<uint64_t>(num_sets)));
}

// The slot (set * ways + way) of `id`, or -1.
MPE_HD int64_t probe(const uint64_t* tags, int64_t num_sets, int32_t ways, uint64_t id) {
  const int64_t first = set_of(id, num_sets) * ways;
  const int32_t way = probe_set(tags + first, ways, id);
  return way < 0 ? -1 : first + way;
}

MPE_END

#endif
