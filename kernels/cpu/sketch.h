// The count-min sketch of LFU, changed by several tasks at once.
#pragma once

#include "cpu/common.h"

MPE_BEGIN

// A saturating or raising change of an 8-bit cell that other tasks may change as well. The result
// does not depend on their order.
template <class Change>
inline void change_cell(uint8_t* cell, Change change) {
  uint8_t seen = __atomic_load_n(cell, __ATOMIC_RELAXED);
  for (;;) {
    const uint8_t next = change(seen);
    if (next == seen ||
        __atomic_compare_exchange_n(cell, &seen, next, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
      return;
    }
  }
}

template <class Visit>
inline void for_cells(const mpe_cache& c, uint64_t key, Visit visit) {
  const uint64_t hash = splitmix64(key), width = static_cast<uint64_t>(c.sketch_width);
  for (uint32_t j = 0; j < kSketchRows; ++j) {
    visit(c.sketch + j * width + sketch_cell(hash, j, width));
  }
}

inline void sketch_add(const mpe_cache& c, uint64_t key) {
  for_cells(c, key, [](uint8_t* cell) {
    change_cell(cell, [](uint8_t v) { return static_cast<uint8_t>(v < kSketchMax ? v + 1 : v); });
  });
}

inline void sketch_raise(const mpe_cache& c, uint64_t key, uint32_t count) {
  const uint8_t floor = static_cast<uint8_t>(count < kSketchMax ? count : kSketchMax);
  for_cells(c, key, [=](uint8_t* cell) {
    change_cell(cell, [=](uint8_t v) { return v < floor ? floor : v; });
  });
}

inline uint32_t sketch_estimate(const mpe_cache& c, uint64_t key) {
  uint32_t low = kSketchMax;
  for_cells(c, key, [&](const uint8_t* cell) { low = *cell < low ? *cell : low; });
  return low;
}

MPE_END
