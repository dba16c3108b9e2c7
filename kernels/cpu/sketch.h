// The count-min sketch of LFU, changed by several tasks at once.
#pragma once

#include "cpu/common.h"

MPE_BEGIN

// Raises a cell that other tasks may raise as well: the order does not matter.
inline void raise_cell(uint8_t* cell, uint8_t floor) {
  uint8_t seen = __atomic_load_n(cell, __ATOMIC_RELAXED);
  while (seen < floor && !__atomic_compare_exchange_n(cell, &seen, floor, true, __ATOMIC_RELAXED,
                                                      __ATOMIC_RELAXED)) {
  }
}

// hash: splitmix64 of a row's id.
inline uint8_t* sketch_at(const mpe_cache& c, uint64_t hash, uint32_t row) {
  const uint64_t width = static_cast<uint64_t>(c.sketch_width);
  return c.sketch + row * width + sketch_cell(hash, row, width);
}

// One of `parts` equal pieces of a row of the sketch, which no other task changes meanwhile.
class SketchCells {
 public:
  SketchCells(const mpe_cache& c, uint32_t row, int64_t part, int64_t parts)
      : width_(static_cast<uint64_t>(c.sketch_width)),
        cells_(c.sketch + row * width_),
        row_(row),
        begin_(static_cast<uint32_t>(task_begin(c.sketch_width, parts, part))),
        size_(static_cast<uint32_t>(task_begin(c.sketch_width, parts, part + 1)) - begin_) {}

  void add(uint64_t hash) const {
    const uint32_t at = sketch_cell(hash, row_, width_);
    if (at - begin_ >= size_) return;
    cells_[at] = static_cast<uint8_t>(cells_[at] + (cells_[at] < kSketchMax ? 1 : 0));
  }

 private:
  const uint64_t width_;
  uint8_t* const cells_;
  const uint32_t row_, begin_, size_;
};

inline void sketch_raise(const mpe_cache& c, uint64_t hash, uint32_t count) {
  const uint8_t floor = static_cast<uint8_t>(count < kSketchMax ? count : kSketchMax);
  for (uint32_t row = 0; row < kSketchRows; ++row) raise_cell(sketch_at(c, hash, row), floor);
}

inline uint32_t sketch_estimate(const mpe_cache& c, uint64_t hash) {
  uint32_t low = kSketchMax;
  for (uint32_t row = 0; row < kSketchRows; ++row) {
    const uint8_t here = *sketch_at(c, hash, row);
    low = here < low ? here : low;
  }
  return low;
}

MPE_END
