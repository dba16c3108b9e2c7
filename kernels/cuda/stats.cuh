// Statistics of 32 rows, one per lane: lanes of the same table add up before they write.
#pragma once

#include "cuda/group.cuh"

namespace mpembed {
namespace cuda {

// The lanes of the warp that have the same table.
__device__ inline unsigned lanes_with_table(int32_t t) {
  return __match_any_sync(kFullMask, static_cast<unsigned>(t));
}

__device__ inline bool leads(unsigned lanes) {
  return __ffs(static_cast<int>(lanes)) - 1 == lane_index();
}

// Counts the lanes with `counts` in each lane's table t (-1: none). All lanes of the warp call it.
__device__ inline void count_lanes(const Tables& tables, int32_t t, int stat, bool counts) {
  const unsigned counted = __ballot_sync(kFullMask, counts);
  if (counted == 0) return;
  const unsigned peers = lanes_with_table(t);
  if (t >= 0 && leads(peers)) count_stat(tables.table[t], stat, __popc(counted & peers));
}

}  // namespace cuda
}  // namespace mpembed
