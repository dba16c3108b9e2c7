// Finds which of many neighbouring ranges a warp's positions lie in: it searches for the first
// position, then reads the ranges' ends in order.
#pragma once

#include "cuda/launch.cuh"

namespace mpembed {
namespace cuda {

constexpr int64_t kWarpPositions = 8 * kWarp;

inline int64_t threads_for_positions(int64_t n) { return ceil_div(n, kWarpPositions) * kWarp; }

// The first of the ascending ends, end(window) on, that is beyond position + lane; count if there
// is none. A window in which no lane finds its range begins a long run of empty ranges, which is
// skipped by a search.
template <class End>
__device__ inline int64_t range_of(End end, int64_t count, int64_t window, int64_t position) {
  const int lane = lane_index();
  int64_t found = -1;
  for (unsigned waiting = kFullMask;;) {
    const int64_t i = window + lane, after = i < count ? end(i) - position : kWarp;
    const int mine = static_cast<int>(after < kWarp ? after : kWarp);
    int passed = 0;  // ends of this window that are not beyond the position
    MPE_UNROLL
    for (int s = kWarp / 2; s > 0; s >>= 1) {
      passed += __shfl_sync(kFullMask, mine, passed + s - 1) <= lane ? s : 0;
    }
    passed += __shfl_sync(kFullMask, mine, passed) <= lane ? 1 : 0;
    if (found < 0 && passed < kWarp) found = window + passed;
    const unsigned left = __ballot_sync(kFullMask, found < 0);
    if (left == 0) return found;
    window += kWarp;
    if (!kModel && left == waiting) {
      const int64_t next =
          position + __ffs(static_cast<int>(left));  // for the first lane that waits
      window += first_at_least(count - window, next, [&](int64_t j) { return end(window + j); });
    }
    waiting = left;
  }
}

// Calls visit(position, i) for this warp's positions below `limit`, where end(i) is the first of
// the ascending ends beyond the position; i is count where there is none.
template <class End, class Visit>
__device__ __forceinline__ void each_position(End end, int64_t count, int64_t limit, Visit visit) {
  const int64_t first = thread_index() / kWarp * kWarpPositions;
  if (first >= limit) return;
  int64_t window = first_at_least(count, first + 1, end);
  for (int64_t position = first; position < first + kWarpPositions && position < limit;
       position += kWarp) {
    const int64_t found = range_of(end, count, window, position);
    if (position + lane_index() < limit) visit(position + lane_index(), found);
    window = __shfl_sync(kFullMask, static_cast<long long>(found), kWarp - 1);
  }
}

}  // namespace cuda
}  // namespace mpembed
