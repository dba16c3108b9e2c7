// The slots of a batch's lookups in the caches, as they are when a call needs them.
#pragma once

#include "step/open_batch.h"

namespace mpembed::step {

// Room for the slots of one group's share of a batch; those that are needed one after the other can
// use the same.
struct SlotRoom {
  int32_t* fresh = nullptr;  // of the unique rows
  int32_t* each = nullptr;   // of the lookups
  int64_t unique = 0, lookups = 0;

  void fit(const mpe_open_batch& open, size_t group);
  void take(Arrays& arrays);
};

// The slots of an admitted batch's unique rows: those of its admission where no other batch was
// admitted since, otherwise looked up into `room`.
mpe_status fresh_slots(const mpe_open_batch& open, size_t group, int32_t* room, void* stream,
                       const int32_t** out);
// The slot of each lookup; NULL for a group without a cache. fresh: of the unique rows if they are
// known, or NULL.
mpe_status lookup_slots(const mpe_open_batch& open, size_t group, const SlotRoom& room,
                        const int32_t* fresh, void* stream, const int32_t** out);

}  // namespace mpembed::step
