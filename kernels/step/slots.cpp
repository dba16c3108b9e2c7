#include "step/slots.h"

#include <algorithm>

namespace mpembed::step {

void SlotRoom::fit(const mpe_open_batch& open, size_t group) {
  if (open.group(group).cache == nullptr) return;
  unique = std::max(unique, open.shares[group].unique_capacity);
  lookups = std::max(lookups, open.shares[group].lookups.n);
}

void SlotRoom::take(Arrays& arrays) {
  fresh = arrays.take<int32_t>(unique);
  each = arrays.take<int32_t>(lookups);
}

mpe_status fresh_slots(const mpe_open_batch& open, size_t group, int32_t* room, void* stream,
                       const int32_t** out) {
  const mpe_backend& backend = open.backend();
  const Share& share = open.shares[group];
  // Launches of a device's graphs admit rows too, which nobody counts here.
  if (is_synchronous(backend) && open.admission == open.collection->admissions) {
    *out = share.slots;
    return MPE_OK;
  }
  *out = room;
  return backend.cache_refresh(&open.group(group), &share.unique, share.lookups.n, share.slots,
                               room, stream);
}

mpe_status lookup_slots(const mpe_open_batch& open, size_t group, const SlotRoom& room,
                        const int32_t* fresh, void* stream, const int32_t** out) {
  const mpe_backend& backend = open.backend();
  const mpe_cache* cache = open.group(group).cache;
  const Share& share = open.shares[group];
  *out = nullptr;
  if (cache == nullptr) return MPE_OK;
  *out = room.each;
  if (!open.admitted) {
    return backend.cache_locate(cache, share.lookups.keys, share.lookups.n, room.each, stream);
  }
  if (fresh == nullptr) MPE_TRY(fresh_slots(open, group, room.fresh, stream, &fresh));
  return backend.scatter_slots(&share.unique, fresh, share.lookups.n, room.each, stream);
}

}  // namespace mpembed::step
