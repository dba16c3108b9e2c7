// A warp looks rows up in the cache, one way per lane, several rows at a time.
#pragma once

#include "cuda/group.cuh"

namespace mpembed {
namespace cuda {

constexpr int kProbesAtOnce = 4;  // whose tags are in flight

// The lowest lane of a mask; any lane for 0.
__device__ inline int lane_of(unsigned one) {
  return (__ffs(static_cast<int>(one)) - 1) & (kWarp - 1);
}

// The slot of each lane's own key, or -1; also -1 where not `wanted`. All lanes of the warp call
// it. A collection's sets have at most 32 ways; a C API caller's may have more.
__device__ inline int64_t warp_probe_each(const mpe_cache& cache, uint64_t key, bool wanted) {
  const int lane = lane_index();
  const int32_t first = wanted ? static_cast<int32_t>(set_of(key, cache.num_sets) * cache.ways) : 0;
  int64_t slot = -1;
  for (unsigned left = __ballot_sync(kFullMask, wanted); left != 0;) {
    unsigned keys[kProbesAtOnce];  // whose lanes' keys are next: a bit each, or 0
    MPE_UNROLL
    for (int k = 0; k < kProbesAtOnce; ++k) {
      keys[k] = left & (0u - left);
      left ^= keys[k];
    }
    for (int32_t base = 0; base < cache.ways; base += kWarp) {
      const int32_t way = base + lane;
      uint64_t tags[kProbesAtOnce];
      int32_t begins[kProbesAtOnce];
      MPE_UNROLL
      for (int k = 0; k < kProbesAtOnce; ++k) {
        begins[k] = __shfl_sync(kFullMask, first, lane_of(keys[k]));
        tags[k] = keys[k] != 0 && way < cache.ways ? cache.tags[begins[k] + way] : kTagEmpty;
      }
      MPE_UNROLL
      for (int k = 0; k < kProbesAtOnce; ++k) {
        const uint64_t one =
            __shfl_sync(kFullMask, static_cast<unsigned long long>(key), lane_of(keys[k]));
        const unsigned found = __ballot_sync(kFullMask, (tags[k] & kTagIdMask) == one);
        if (found != 0 && lane == lane_of(keys[k])) {
          slot = begins[k] + base + __ffs(static_cast<int>(found)) - 1;
        }
      }
    }
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
