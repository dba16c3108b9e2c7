// A warp looks rows up in the cache, one way per lane.
#pragma once

#include "cuda/group.cuh"

namespace mpembed {
namespace cuda {

// The slot of a key that is the same in all lanes, or -1. A collection's sets have at most 32 ways;
// a C API caller's may have more.
__device__ inline int64_t warp_probe(const mpe_cache& cache, uint64_t key) {
  const int64_t first = set_of(key, cache.num_sets) * cache.ways;
  const int lane = lane_index();
  for (int32_t base = 0; base < cache.ways; base += kWarp) {
    const bool here = base + lane < cache.ways;
    const uint64_t tag = here ? cache.tags[first + base + lane] : kTagEmpty;
    const unsigned found = __ballot_sync(kFullMask, here && (tag & kTagIdMask) == key);
    if (found != 0) return first + base + __ffs(static_cast<int>(found)) - 1;
  }
  return -1;
}

// The slot of each lane's own key, or -1; also -1 where not `wanted`. All lanes of the warp call
// it.
__device__ inline int64_t warp_probe_each(const mpe_cache& cache, uint64_t key, bool wanted) {
  int64_t slot = -1;
  for (unsigned left = __ballot_sync(kFullMask, wanted); left != 0; left &= left - 1) {
    const int lane = __ffs(static_cast<int>(left)) - 1;
    const uint64_t one = __shfl_sync(kFullMask, static_cast<unsigned long long>(key), lane);
    const int64_t found = warp_probe(cache, one);
    if (lane == lane_index()) slot = found;
  }
  return slot;
}

// The slot of a unique row as it is now: that of its admission, or one that another admission has
// given it meanwhile. All lanes of the warp call it, each with a row of its own.
__device__ inline int32_t refreshed_slot(const mpe_cache& cache, const mpe_unique& unique,
                                         int64_t u, bool here, int32_t admitted) {
  const uint64_t key = here ? unique.rows[u] : 0;
  const int64_t found = warp_probe_each(cache, key, here && admitted < 0);
  return admitted >= 0 ? admitted : static_cast<int32_t>(found);
}

// Takes one pin back.
__device__ inline void unpin(const mpe_cache& cache, int64_t slot) {
  atomicAdd(reinterpret_cast<unsigned long long*>(cache.tags + slot),
            static_cast<unsigned long long>(0) - static_cast<unsigned long long>(kTagPin));
}

// Sets the dirty bit atomically: other kernels may change the tag's pins at the same time.
__device__ inline void mark_dirty(const mpe_cache& cache, int64_t slot) {
  atomicOr(reinterpret_cast<unsigned long long*>(cache.tags + slot),
           static_cast<unsigned long long>(kTagDirty));
}

}  // namespace cuda
}  // namespace mpembed
