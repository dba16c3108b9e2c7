// The count-min sketch of LFU, changed by several tasks at once.
#pragma once

#include "cpu/common.h"

MPE_BEGIN

// Raises a cell to at least `count`. Other tasks may raise it too: the order does not matter.
inline void raise_cell(uint8_t* cell, uint8_t count) {
  uint8_t seen = __atomic_load_n(cell, __ATOMIC_RELAXED);
  while (seen < count && !__atomic_compare_exchange_n(cell, &seen, count, true, __ATOMIC_RELAXED,
                                                      __ATOMIC_RELAXED)) {
  }
}

// The cell of a hash (splitmix64 of a row's id) in one row of the sketch.
inline uint8_t* cell_address(const mpe_cache& cache, uint64_t hash, uint32_t row) {
  const uint64_t width = static_cast<uint64_t>(cache.sketch_width);
  return cache.sketch + row * width + sketch_cell(hash, row, width);
}

// Makes the cells of a hash at least `count`.
inline void sketch_raise(const mpe_cache& cache, uint64_t hash, uint32_t count) {
  const uint8_t limited = static_cast<uint8_t>(count < kSketchMax ? count : kSketchMax);
  for (uint32_t row = 0; row < kSketchRows; ++row) {
    raise_cell(cell_address(cache, hash, row), limited);
  }
}

// How often a hash was counted, or more: rows may share cells.
inline uint32_t sketch_estimate(const mpe_cache& cache, uint64_t hash) {
  uint32_t smallest = kSketchMax;
  for (uint32_t row = 0; row < kSketchRows; ++row) {
    const uint8_t count = *cell_address(cache, hash, row);
    smallest = count < smallest ? count : smallest;
  }
  return smallest;
}

MPE_END
