// A row's optimizer states in its table, each in its own format.
#pragma once

#include "cuda/row.cuh"

namespace mpembed {
namespace cuda {

template <class Function>
__device__ __forceinline__ auto with_stored_format(const mpe_state& state, Function function) {
  if constexpr (kModel) return function(Fp32{});
  return with_state_format(state.format, function);
}

__device__ __forceinline__ uint8_t* state_row(const mpe_state& state, int64_t row) {
  return state.data + row * state.stride;
}

// Calls read(c, x) for each of this lane's chunks of an element-wise state.
template <bool kLong, class Visit>
__device__ __forceinline__ void read_state(const Tile& tile, const Tables& tables,
                                           const mpe_state& state, int64_t row, Visit visit) {
  with_stored_format(state, [&](auto format) {
    each_chunk<kLong>(tile, tables.dim, [&](int32_t c) {
      float x[kChunk];
      read_chunk<decltype(format)>(state_row(state, row), tables.dim, c, tables.alignment, x);
      visit(c, x);
    });
  });
}

// Writes an element-wise state, the optimizer's number i; values as for write_row.
template <bool kLong, class Values>
__device__ __forceinline__ void write_state(const Tile& tile, const Tables& tables,
                                            const Rounding& rounding, const mpe_table& table, int i,
                                            int64_t row, Values values) {
  const mpe_state& state = table.states[i];
  with_stored_format(state, [&](auto format) {
    const Target target{rounding.stream(state_domain(i), table, row), state_row(state, row),
                        tables.dim, tables.alignment};
    write_row<decltype(format), kLong>(tile, target, rounding.random(), values);
  });
}

// States of one value, at any address: read by all lanes, written by one.
__device__ __forceinline__ float read_value(const mpe_state& state, int64_t row) {
  return with_stored_format(state, [&](auto format) {
    using Column = Chunk<decltype(format), 1>;
    uint32_t raw[Column::kRaw], words[Column::kWords];
    Column::load(state_row(state, row), 1, raw);
    Column::join(raw, words);
    return Column::value(words, {}, 0);
  });
}

__device__ __forceinline__ void write_value(const Rounding& rounding, const mpe_table& table, int i,
                                            int64_t row, float value) {
  const mpe_state& state = table.states[i];
  with_stored_format(state, [&](auto format) {
    using Format = decltype(format);
    using Writer = PlainWriter<Format>;
    uint32_t words[Chunk<Format, 1>::kWords] = {};
    if (!Format::kExact && rounding.random()) {
      const Philox4 draws = rounding.stream(state_domain(i), table, row).block(0);
      words[0] = Writer::template encode<true>(value, draws, 0);
    } else {
      words[0] = Writer::template encode<false>(value, Philox4{}, 0);
    }
    Chunk<Format, 1>::store(state_row(state, row), 1, words);
  });
}

}  // namespace cuda
}  // namespace mpembed
