// The count-min sketch of LFU, changed by many threads at once.
#pragma once

#include "cuda/launch.cuh"
#include "mpembed/hash.h"
#include "mpembed/policy/lfu.h"

namespace mpembed {
namespace cuda {

// Makes an 8-bit cell at least `count`, through its 32-bit word. The order of threads does not
// matter.
__device__ inline void raise_cell(uint8_t* cell, unsigned count) {
  const uintptr_t address = reinterpret_cast<uintptr_t>(cell);
  unsigned* word = reinterpret_cast<unsigned*>(address & ~uintptr_t{3});
  const unsigned shift = static_cast<unsigned>(address & 3) * 8;
  unsigned seen = __ldcg(word);
  for (;;) {
    if (((seen >> shift) & 0xFFu) >= count) return;
    const unsigned next = (seen & ~(0xFFu << shift)) | (count << shift);
    const unsigned found = atomicCAS(word, seen, next);
    if (found == seen) return;
    seen = found;
  }
}

__device__ inline uint8_t* sketch_address(const mpe_cache& cache, uint64_t key, uint32_t row) {
  const uint64_t width = static_cast<uint64_t>(cache.sketch_width);
  return cache.sketch + row * width + sketch_cell(splitmix64(key), row, width);
}

// Makes a key's cell in one row of the sketch at least `count`.
__device__ inline void sketch_raise(const mpe_cache& cache, uint64_t key, uint32_t row,
                                    uint32_t count) {
  raise_cell(sketch_address(cache, key, row), count < kSketchMax ? count : kSketchMax);
}

// How often a key was counted, or more: rows may share cells.
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
