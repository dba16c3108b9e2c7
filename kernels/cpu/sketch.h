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

// One of `slices` equal ranges of a row of the sketch, which no other task changes meanwhile.
class SketchSlice {
 public:
  SketchSlice(const mpe_cache& cache, uint32_t row, int64_t slice, int64_t slices)
      : width_(static_cast<uint64_t>(cache.sketch_width)),
        cells_(cache.sketch + row * width_),
        row_(row),
        begin_(static_cast<uint32_t>(task_begin(cache.sketch_width, slices, slice))),
        size_(static_cast<uint32_t>(task_begin(cache.sketch_width, slices, slice + 1)) - begin_) {}

  // Counts a hash whose cell lies in this slice.
  void add(uint64_t hash) const {
    const uint32_t cell = sketch_cell(hash, row_, width_);
    if (cell - begin_ >= size_) return;
    cells_[cell] = static_cast<uint8_t>(cells_[cell] + (cells_[cell] < kSketchMax ? 1 : 0));
  }

 private:
  const uint64_t width_;
  uint8_t* const cells_;
  const uint32_t row_, begin_, size_;
};

inline void sketch_raise(const mpe_cache& cache, uint64_t hash, uint32_t count) {
  const uint8_t limited = static_cast<uint8_t>(count < kSketchMax ? count : kSketchMax);
  for (uint32_t row = 0; row < kSketchRows; ++row) {
    raise_cell(cell_address(cache, hash, row), limited);
  }
}

inline uint32_t sketch_estimate(const mpe_cache& cache, uint64_t hash) {
  uint32_t smallest = kSketchMax;
  for (uint32_t row = 0; row < kSketchRows; ++row) {
    const uint8_t count = *cell_address(cache, hash, row);
    smallest = count < smallest ? count : smallest;
  }
  return smallest;
}

MPE_END
