// The lane tree of docs/numerics.md (section 5) for tiles whose lanes hold eight neighbouring
// columns each.
//
// Thread j of a tile holds columns 8 j + i, which belong to the tree's lanes 8 (j % 4) + i. Threads
// with the same j % 4 first exchange columns, so that each holds every 32nd column of 8 / kPeers of
// these lanes, and adds them in ascending order. The sum of two numbers does not depend on their
// order, so an exchange gives all threads the same result.
#pragma once

#include "cuda/row.cuh"

namespace mpembed {
namespace cuda {

template <int kLanes>
class SquaresTree {
 public:
  __device__ explicit SquaresTree(const Tile& tile) : tile_(tile) {}

  // Adds the next chunk of every thread, in ascending order; zeros beyond the row.
  __device__ __forceinline__ void add(const float* chunk) {
    float v[kChunk];
    MPE_UNROLL
    for (int i = 0; i < kChunk; ++i) v[i] = chunk[i];
    MPE_UNROLL
    for (int bit = kEach; bit < kChunk; bit *= 2) exchange(v, bit);
    MPE_UNROLL
    for (int i = 0; i < kChunk; ++i) {
      lanes_[i % kEach] = fmaf(v[i], v[i], lanes_[i % kEach]);
    }
  }

  // Squares are never -0, so lanes without columns need no addition.
  __device__ __forceinline__ float fold() {
    if (kLanes >= 4) fold_across<kEach>(2);
    if (kLanes >= 2) fold_across<kEach>(1);
    MPE_UNROLL
    for (int s = kChunk / 2; s >= kEach; s /= 2) fold_across<kEach>(4 * s / kEach);
    MPE_UNROLL
    for (int s = kEach / 2; s > 0; s /= 2) {
      for (int i = 0; i < s; ++i) lanes_[i] = lanes_[i] + lanes_[i + s];
    }
    return lanes_[0];
  }

 private:
  static constexpr int kPeers = kLanes > 4 ? kLanes / 4 : 1;  // threads with the same j % 4
  static constexpr int kEach = kChunk / kPeers;               // the tree's lanes of a thread

  // One step of a transposition: swaps bit `bit` of v's index with a bit of the thread's number.
  __device__ __forceinline__ void exchange(float* v, int bit) {
    const int other = 4 * bit / kEach;
    const bool upper = (tile_.lane & other) != 0;
    MPE_UNROLL
    for (int i = 0; i < kChunk; ++i) {
      if ((i & bit) != 0) continue;
      const float got = __shfl_xor_sync(tile_.mask, upper ? v[i] : v[i + bit], other);
      v[i] = upper ? got : v[i];
      v[i + bit] = upper ? v[i + bit] : got;
    }
  }
  template <int kCount>
  __device__ __forceinline__ void fold_across(int other) {
    MPE_UNROLL
    for (int i = 0; i < kCount; ++i) {
      lanes_[i] = lanes_[i] + __shfl_xor_sync(tile_.mask, lanes_[i], other);
    }
  }

  const Tile& tile_;
  float lanes_[kEach] = {};
};

// Calls function with the tile's number of lanes as an integral constant.
template <class Function>
__device__ __forceinline__ float with_lanes(const Tile& tile, Function function) {
  switch (tile.shift) {
    case 0:
      return function(std::integral_constant<int, 1>{});
    case 1:
      return function(std::integral_constant<int, 2>{});
    case 2:
      return function(std::integral_constant<int, 4>{});
    case 3:
      return function(std::integral_constant<int, 8>{});
    case 4:
      return function(std::integral_constant<int, 16>{});
    default:
      return function(std::integral_constant<int, 32>{});
  }
}

}  // namespace cuda
}  // namespace mpembed
