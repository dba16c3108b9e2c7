// Measures what rounding adds to rows that are written, for a sample of the writes.
#pragma once

#include "cuda/row.cuh"
#include "mpembed/noise.h"

namespace mpembed {
namespace cuda {

// Whether the write of a table's row is measured.
__device__ __forceinline__ bool is_measured(const Rounding& rounding, const mpe_table& table,
                                            int64_t row) {
  return !kModel && table.noise != nullptr &&
         noise_sampled(static_cast<uint64_t>(table.table_id),
                       static_cast<uint64_t>(table.first_row + row), *rounding.step);
}

// A row that is about to be written, and what it was before its update.
template <bool kLong>
struct MeasuredRow {
  RowFragment<kLong> values;
  const float* cached;    // its slot, or null
  const uint8_t* stored;  // in its table; null where the update is counted already
};

// Adds up over the tile, and over the columns of a long row.
template <bool kLong>
class NoiseMeasurement {
 public:
  __device__ NoiseMeasurement(const Tile& tile, int32_t dim, const mpe_table& table,
                              const MeasuredRow<kLong>& row)
      : tile_(tile), dim_(dim), table_(table), row_(row) {}

  template <class Format>
  __device__ void run(bool stochastic) const {
    float low = INFINITY, high = -INFINITY;
    each([&](int32_t, float x) {
      low = x < low ? x : low;
      high = x > high ? x : high;
    });
    tile_.range(low, high);
    const RowNoise<Format> noise(low, high);
    if (!noise.measurable()) return;
    const bool updates = row_.stored != nullptr;
    if (row_.cached == nullptr || !updates) {
      add(MPE_noise_rounding, [&](int32_t, float x) { return noise.noise(x, stochastic); });
    }
    if (!updates) return;
    if (tile_.lane == 0) atomic_add64(table_.noise + MPE_noise_rows, 1);
    const typename Format::RowHeader header = Format::header(row_.stored, dim_);
    add(MPE_noise_update, [&](int32_t c, float x) {
      const float old =
          row_.cached != nullptr ? row_.cached[c] : Format::value(row_.stored, header, c);
      return noise.update(x, old);
    });
  }

 private:
  template <class Visit>
  __device__ __forceinline__ void each(Visit visit) const {
    each_chunk<kLong>(tile_, dim_, [&](int32_t c) {
      float x[kChunk];
      row_.values.load(c, x);
      MPE_UNROLL
      for (int j = 0; j < kChunk; ++j) {
        if (c + j < dim_) visit(c + j, x[j]);
      }
    });
  }

  template <class Square>
  __device__ __forceinline__ void add(int sum, Square square) const {
    int64_t squares = 0;
    each([&](int32_t c, float x) { squares += square(c, x); });
    for (int s = tile_.lanes() / 2; s > 0; s >>= 1) {
      squares += static_cast<int64_t>(
          __shfl_xor_sync(tile_.mask, static_cast<unsigned long long>(squares), s));
    }
    if (tile_.lane == 0) atomic_add64(table_.noise + sum, squares / dim_);
  }

  const Tile& tile_;
  const int32_t dim_;
  const mpe_table& table_;
  const MeasuredRow<kLong>& row_;
};

// One of many rows comes here: the code stands apart from that of all. It takes the dimension, not
// the tables: these are arguments of the kernel, and a call would have to give them an address.
template <bool kLong>
__device__ __noinline__ void measure(const Tile tile, int32_t dim, const mpe_table& table,
                                     const MeasuredRow<kLong> row, bool stochastic) {
  const NoiseMeasurement<kLong> measurement(tile, dim, table, row);
  with_format(table.precision, [&](auto format) {
    using Format = decltype(format);
    if constexpr (!Format::kExact) measurement.template run<Format>(stochastic);
  });
}

}  // namespace cuda
}  // namespace mpembed
