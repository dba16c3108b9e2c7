// Finds which of many neighbouring ranges a warp's positions lie in: it searches for the first
// position, then reads the ranges' ends in order.
#pragma once

#include "cuda/launch.cuh"

namespace mpembed {
namespace cuda {

constexpr int64_t kWarpPositions = 8 * kWarp;

inline int64_t threads_for_positions(int64_t n) { return ceil_div(n, kWarpPositions) * kWarp; }

// Ranges and positions are numbered with 32 bits: a group has at most MPE_MAX_LOOKUPS of either.

// The first i of n for which value(i), which ascends, is at least `limit`; n if there is none. The
// lanes of a warp look at 32 places at once, so that it waits for few of them one after the other.
template <class Value>
__device__ inline uint32_t warp_first_at_least(uint32_t n, int64_t limit, Value value) {
  const uint32_t lane = static_cast<uint32_t>(lane_index());
  uint32_t begin = 0;
  while (n > 0) {
    const uint32_t step = (n + kWarp - 1) / kWarp, from = lane * step;
    const uint32_t last = (from + step < n ? from + step : n) - 1;  // of the lane's part
    const unsigned reached = __ballot_sync(kFullMask, from < n && value(begin + last) >= limit);
    if (reached == 0) return begin + n;
    const uint32_t part = static_cast<uint32_t>(__ffs(static_cast<int>(reached)) - 1) * step;
    begin += part;
    n = (step < n - part ? step : n - part) - 1;  // the part's last one is known
  }
  return begin;
}

// The first of the ascending ends, end(window) on, that is beyond position + lane; count if there
// is none. A window in which no lane finds its range begins a long run of empty ranges, which is
// skipped by a search.
template <class End>
__device__ inline uint32_t range_of(End end, uint32_t count, uint32_t window, uint32_t position) {
  constexpr uint32_t kNone = UINT32_MAX;
  const int32_t lane = lane_index();
  uint32_t found = kNone;
  for (unsigned waiting = kFullMask;;) {
    const uint32_t i = window + static_cast<uint32_t>(lane);
    const int32_t after = i < count ? static_cast<int32_t>(end(i) - position) : kWarp;
    const int32_t mine = after < kWarp ? after : kWarp;
    int32_t passed = 0;  // ends of this window that are not beyond the position
    MPE_UNROLL
    for (int32_t s = kWarp / 2; s > 0; s >>= 1) {
      passed += __shfl_sync(kFullMask, mine, passed + s - 1) <= lane ? s : 0;
    }
    passed += __shfl_sync(kFullMask, mine, passed) <= lane ? 1 : 0;
    if (found == kNone && passed < kWarp) found = window + static_cast<uint32_t>(passed);
    const unsigned left = __ballot_sync(kFullMask, found == kNone);
    if (left == 0) return found;
    window += kWarp;
    if (!kModel && left == waiting) {
      const int64_t next =
          position + __ffs(static_cast<int>(left));  // for the first lane that waits
      window +=
          warp_first_at_least(count - window, next, [&](uint32_t j) { return end(window + j); });
    }
    waiting = left;
  }
}

// Calls visit(position, i) for the positions below `limit` of warp number `warp`, where end(i) is
// the first of the ascending ends beyond the position; i is count where there is none. find(p) is
// the first i whose end is at least p.
template <class Find, class End, class Visit>
__device__ __forceinline__ void each_position(int64_t warp, Find find, End end, uint32_t count,
                                              uint32_t limit, Visit visit) {
  if (warp * kWarpPositions >= limit) return;
  const uint32_t first = static_cast<uint32_t>(warp * kWarpPositions);
  const uint32_t rest = limit - first, lane = static_cast<uint32_t>(lane_index());
  uint32_t window = find(first + 1);
  for (uint32_t k = 0; k < kWarpPositions && k < rest; k += kWarp) {
    const uint32_t found = range_of(end, count, window, first + k);
    if (k + lane < rest) visit(first + k + lane, found);
    window = __shfl_sync(kFullMask, found, kWarp - 1);
  }
}

}  // namespace cuda
}  // namespace mpembed
