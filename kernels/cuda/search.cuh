// Which of many neighbouring ranges a warp's places lie in: one search for its first place, then
// the ranges' ends are read in order.
#pragma once

#include "cuda/launch.cuh"

namespace mpembed {
namespace cuda {

constexpr int64_t kPlaces = 8 * kWarp;  // of a warp

inline int64_t threads_of_places(int64_t n) { return ceil_div(n, kPlaces) * kWarp; }

// For ascending ends: the first from `window` on that is beyond place + lane, or count. A window in
// which no lane finds its range is the begin of a long run of empty ranges: that is searched.
__device__ inline int64_t range_of(const int64_t* ends, int64_t count, int64_t window,
                                   int64_t place) {
  const int lane = lane_index();
  int64_t found = -1;
  for (unsigned waiting = kFullMask;;) {
    const int64_t i = window + lane, end = i < count ? ends[i] - place : kWarp;
    const int mine = static_cast<int>(end < kWarp ? end : kWarp);
    int passed = 0;  // of this window's ends, those that are not beyond
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
      const int64_t next = place + __ffs(static_cast<int>(left));  // beyond the first that waits
      const int64_t* rest = ends + window;
      window += first_at_least(count - window, next, [&](int64_t j) { return rest[j]; });
    }
    waiting = left;
  }
}

// Calls visit(place, i) for this warp's places below `limit`, where ends[i] is the first end beyond
// the place; i is count where there is none.
template <class Visit>
__device__ __forceinline__ void each_place(const int64_t* ends, int64_t count, int64_t limit,
                                           Visit visit) {
  const int64_t first = thread_index() / kWarp * kPlaces;
  if (first >= limit) return;
  int64_t window = first_at_least(count, first + 1, [&](int64_t i) { return ends[i]; });
  for (int64_t place = first; place < first + kPlaces && place < limit; place += kWarp) {
    const int64_t found = range_of(ends, count, window, place);
    if (place + lane_index() < limit) visit(place + lane_index(), found);
    window = __shfl_sync(kFullMask, static_cast<long long>(found), kWarp - 1);
  }
}

}  // namespace cuda
}  // namespace mpembed
