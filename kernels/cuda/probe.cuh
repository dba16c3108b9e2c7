// A warp looks rows up in the cache: a lane a way.
#pragma once

#include "cuda/group.cuh"

namespace mpembed {
namespace cuda {

// The slot of a key that all lanes have, or -1. A collection's sets have 32 ways at most; tags that
// a caller brings may have more.
__device__ inline int64_t warp_probe(const mpe_cache& c, uint64_t key) {
  const int64_t first = set_of(key, c.num_sets) * c.ways;
  const int lane = lane_index();
  for (int32_t base = 0; base < c.ways; base += kWarp) {
    const bool here = base + lane < c.ways;
    const uint64_t tag = here ? c.tags[first + base + lane] : kTagEmpty;
    const unsigned found = __ballot_sync(kFullMask, here && (tag & kTagIdMask) == key);
    if (found != 0) return first + base + __ffs(static_cast<int>(found)) - 1;
  }
  return -1;
}

// Each lane's own key, where `wanted`: its slot or -1. All lanes of the warp call it.
__device__ inline int64_t warp_probe_each(const mpe_cache& c, uint64_t key, bool wanted) {
  int64_t slot = -1;
  for (unsigned left = __ballot_sync(kFullMask, wanted); left != 0; left &= left - 1) {
    const int lane = __ffs(static_cast<int>(left)) - 1;
    const uint64_t one = __shfl_sync(kFullMask, static_cast<unsigned long long>(key), lane);
    const int64_t found = warp_probe(c, one);
    if (lane == lane_index()) slot = found;
  }
  return slot;
}

// Sets bits of a tag that other kernels' pins may change at the same time.
__device__ inline void mark_dirty(const mpe_cache& c, int64_t slot) {
  atomicOr(reinterpret_cast<unsigned long long*>(c.tags + slot),
           static_cast<unsigned long long>(kTagDirty));
}

}  // namespace cuda
}  // namespace mpembed
