// The count-min sketch of LFU, changed by many threads at once.
#pragma once

#include "cuda/launch.cuh"
#include "mpembed/hash.h"
#include "mpembed/policy/lfu.h"

namespace mpembed {
namespace cuda {

// A saturating or raising change of an 8-bit cell, by its 32-bit word; the result does not depend
// on the order of the changes.
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

__device__ inline uint8_t* sketch_place(const mpe_cache& c, uint64_t key, uint32_t row) {
  const uint64_t width = static_cast<uint64_t>(c.sketch_width);
  return c.sketch + row * width + sketch_cell(splitmix64(key), row, width);
}

__device__ inline void sketch_add(const mpe_cache& c, uint64_t key) {
  for (uint32_t j = 0; j < kSketchRows; ++j) {
    change_cell(sketch_place(c, key, j), [](unsigned v) { return v < kSketchMax ? v + 1 : v; });
  }
}

// One row of the sketch; lanes 0 to 3 take one each.
__device__ inline void sketch_raise(const mpe_cache& c, uint64_t key, uint32_t row,
                                    uint32_t count) {
  const unsigned floor = count < kSketchMax ? count : kSketchMax;
  change_cell(sketch_place(c, key, row), [=](unsigned v) { return v < floor ? floor : v; });
}

__device__ inline uint32_t sketch_estimate(const mpe_cache& c, uint64_t key) {
  uint32_t low = kSketchMax;
  for (uint32_t j = 0; j < kSketchRows; ++j) {
    const uint32_t v = *sketch_place(c, key, j);
    low = v < low ? v : low;
  }
  return low;
}

}  // namespace cuda
}  // namespace mpembed
