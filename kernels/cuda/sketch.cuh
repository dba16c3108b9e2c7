// The count-min sketch of LFU, changed by many threads at once.
#pragma once

#include "cuda/launch.cuh"
#include "mpembed/hash.h"
#include "mpembed/policy/lfu.h"

namespace mpembed {
namespace cuda {

// Changes an 8-bit cell through its 32-bit word. The changes below saturate or raise, so their
// order does not matter.
template <class Change>
__device__ inline void change_cell(uint8_t* cell, Change change) {
  const uintptr_t address = reinterpret_cast<uintptr_t>(cell);
  unsigned* word = reinterpret_cast<unsigned*>(address & ~uintptr_t{3});
  const unsigned shift = static_cast<unsigned>(address & 3) * 8;
  unsigned seen = __ldcg(word);
  for (;;) {
    const unsigned before = (seen >> shift) & 0xFFu, after = change(before);
    if (after == before) return;
    const unsigned next = (seen & ~(0xFFu << shift)) | (after << shift);
    const unsigned found = atomicCAS(word, seen, next);
    if (found == seen) return;
    seen = found;
  }
}

__device__ inline uint8_t* sketch_address(const mpe_cache& cache, uint64_t key, uint32_t row) {
  const uint64_t width = static_cast<uint64_t>(cache.sketch_width);
  return cache.sketch + row * width + sketch_cell(splitmix64(key), row, width);
}

__device__ inline void sketch_add(const mpe_cache& cache, uint64_t key) {
  for (uint32_t j = 0; j < kSketchRows; ++j) {
    change_cell(sketch_address(cache, key, j),
                [](unsigned count) { return count < kSketchMax ? count + 1 : count; });
  }
}

// Raises one row of the sketch; lanes 0 to 3 take one row each.
__device__ inline void sketch_raise(const mpe_cache& cache, uint64_t key, uint32_t row,
                                    uint32_t count) {
  const unsigned floor = count < kSketchMax ? count : kSketchMax;
  change_cell(sketch_address(cache, key, row),
              [=](unsigned cell) { return cell < floor ? floor : cell; });
}

__device__ inline uint32_t sketch_estimate(const mpe_cache& cache, uint64_t key) {
  uint32_t least = kSketchMax;
  for (uint32_t j = 0; j < kSketchRows; ++j) {
    const uint32_t count = *sketch_address(cache, key, j);
    least = count < least ? count : least;
  }
  return least;
}

}  // namespace cuda
}  // namespace mpembed
