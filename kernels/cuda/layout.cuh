// How the rows, states and slots of a group lie in memory: what launchers find out for kernels.
#pragma once

#include "cuda/launch.cuh"
#include "state_formats.h"

namespace mpembed {
namespace cuda {

constexpr int kChunk = 8;  // columns that a lane holds at once, see chunk.cuh
constexpr int kHalfChunk = 4;

// The largest power of two that divides n, 16 at most.
constexpr MPE_HD int byte_alignment(int64_t n) {
  return n % 16 == 0 ? 16 : n % 8 == 0 ? 8 : n % 4 == 0 ? 4 : n % 2 == 0 ? 2 : 1;
}

constexpr MPE_HD int min_of(int a, int b) { return a < b ? a : b; }
constexpr MPE_HD int max_of(int a, int b) { return a > b ? a : b; }

// The multiples of bytes at which rows must begin so that a lane may load so many columns of them
// at once. Columns that do not fill whole bytes are loaded byte by byte, from anywhere.
template <class Format>
constexpr MPE_HD int piece_alignment(int columns) {
  const int bits = columns * Format::kBitsPerCode;
  return bits % 8 != 0 ? 1 : min_of(byte_alignment(bits / 8), byte_alignment(Format::kHeaderBytes));
}

// Finds how many columns of every row a lane may load at once: 8, 4, or 1 if nothing is known.
class ColumnAlignment {
 public:
  explicit ColumnAlignment(int64_t dim)
      : columns_(dim % kChunk == 0       ? kChunk
                 : dim % kHalfChunk == 0 ? kHalfChunk
                                         : 1) {}

  template <class Format>
  void add(const void* rows, int64_t stride) {
    const int64_t place = static_cast<int64_t>(reinterpret_cast<uintptr_t>(rows)) | stride;
    while (columns_ > 1 && place % piece_alignment<Format>(columns_) != 0) {
      columns_ = columns_ == kChunk ? kHalfChunk : 1;
    }
  }
  int32_t columns() const { return columns_; }

 private:
  int32_t columns_;
};

// Of every row of a group, of its element-wise states and of its slots.
inline int32_t column_alignment(const mpe_group& group, const StateShapes& states) {
  ColumnAlignment found(group.dim);
  if (group.cache != nullptr) found.add<Fp32>(group.cache->rows, 0);
  for (int32_t t = 0; t < group.num_tables; ++t) {
    const mpe_table& table = group.tables[t];
    with_format(table.precision,
                [&](auto format) { found.add<decltype(format)>(table.rows, table.row_stride); });
    for (int k = 0; k < states.num_elements; ++k) {
      const mpe_state& state = table.states[states.element[k]];
      if (!is_state_format(state.format)) continue;
      with_state_format(state.format, [&](auto format) {
        found.add<decltype(format)>(state.data, state.stride);
      });
    }
  }
  return found.columns();
}

}  // namespace cuda
}  // namespace mpembed
