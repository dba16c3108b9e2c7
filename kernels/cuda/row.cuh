// Rows read and written by a tile of lanes, eight neighbouring columns a lane; rows of more than
// 256 columns in rounds.
#pragma once

#include "cuda/chunk.cuh"

namespace mpembed {
namespace cuda {

// Lanes of a warp that share a row: a power of two. All of them call the collectives together.
struct Tile {
  int32_t shift;  // its logarithm
  int lane;
  unsigned mask;

  __device__ explicit Tile(int32_t shift_) : shift(shift_) {
    const int in_warp = lane_index(), last = lanes() - 1;
    lane = in_warp & last;
    mask = (kFullMask >> (kWarp - 1 - last)) << (in_warp & ~last);
  }

  __device__ int lanes() const { return 1 << shift; }
  __device__ int64_t index() const { return thread_index() >> shift; }  // in the grid

  template <class T>
  __device__ T shuffle(T v, int from) const {
    return __shfl_sync(mask, v, from, 1 << shift);
  }
  __device__ uint64_t shuffle(uint64_t v, int from) const {
    return __shfl_sync(mask, static_cast<unsigned long long>(v), from, 1 << shift);
  }
  __device__ bool any(bool v) const { return __any_sync(mask, v) != 0; }
  __device__ void range(float& mn, float& mx) const {
    for (int s = 1 << shift >> 1; s > 0; s >>= 1) {
      const float low = __shfl_xor_sync(mask, mn, s), high = __shfl_xor_sync(mask, mx, s);
      mn = low < mn ? low : mn;
      mx = high > mx ? high : mx;
    }
  }
};

constexpr int32_t kRound = kWarp * kChunk;  // columns that a warp has at once

// The logarithm of the lanes that have a row's columns, `each` of them a lane.
inline int32_t tile_shift(int32_t dim, int32_t each = kChunk) {
  int32_t shift = 0;
  while ((1 << shift) < kWarp && (each << shift) < dim) ++shift;
  return shift;
}

// Calls f with whether a row takes several rounds, as an integral constant.
template <class F>
mpe_status with_rounds(int32_t dim, F f) {
  if (dim > kRound) return f(std::true_type{});
  return f(std::false_type{});
}

// Calls visit(c) for each of this lane's chunks within the row; one, unless the row is long.
template <bool kLong, class Visit>
__device__ __forceinline__ void each_chunk(const Tile& tile, int32_t dim, Visit visit) {
  int32_t c = tile.lane * kChunk;
  if constexpr (kLong) {
    for (; c < dim; c += kRound) visit(c);
  } else {
    if (c < dim) visit(c);
  }
}

// What lies beyond the row becomes `value`.
__device__ __forceinline__ void fill_beyond(float* x, int32_t columns, float value) {
  if (!kModel && columns < kChunk) {
    MPE_UNROLL
    for (int j = 0; j < kChunk; ++j) x[j] = j < columns ? x[j] : value;
  }
}

// The values of a stored row's chunk at column c; zero beyond the row.
template <class F>
__device__ __forceinline__ void read_chunk(const uint8_t* row, int32_t dim, int32_t c,
                                           int32_t grain, float* x) {
  with_grain(grain, [&](auto g) {
    using C = Chunk<F, decltype(g)::value>;
    uint32_t raw[C::kRaw], header[C::kRawHeader + 1], words[C::kWords];
    C::load_header(row, dim, header);
    C::load(row, dim, c, raw);
    const typename F::RowHeader h = C::header(header);
    C::join(raw, words);
    MPE_UNROLL
    for (int j = 0; j < kChunk; ++j) x[j] = C::value(words, h, j);
  });
  fill_beyond(x, dim - c, 0.0f);
}

template <class F>
__device__ __forceinline__ void store_words(uint8_t* row, int32_t dim, int32_t c, int32_t grain,
                                            const uint32_t* words) {
  with_grain(grain, [&](auto g) { Chunk<F, decltype(g)::value>::store(row, dim, c, words); });
}

// Where an encoded row goes and what it is rounded with.
struct Target {
  RowStream stream;
  uint8_t* row;
  int32_t dim;
  int32_t grain;

  __device__ __forceinline__ Philox4 draws(int32_t c, bool stochastic) const {
    return stochastic ? stream.block(static_cast<uint32_t>(c / kChunk)) : Philox4{};
  }
};

// Row writers, one a family of formats. at(c, x) gives the values of the chunk at column c, which
// are storable; what it gives beyond the row does not matter.
template <class F>
struct PlainWriter {
  using Convert = typename F::Convert;

  template <bool kLong, bool kStochastic, class At>
  static __device__ __forceinline__ void write(const Tile& tile, const Target& to, At at) {
    constexpr int kBits = F::kBitsPerCode;
    each_chunk<kLong>(tile, to.dim, [&](int32_t c) {
      float x[kChunk];
      at(c, x);
      const Philox4 draws = to.draws(c, kStochastic);
      uint32_t words[Chunk<F, kChunk>::kWords] = {};
      MPE_UNROLL
      for (int j = 0; j < kChunk; ++j) {
        words[j * kBits / 32] |=
            bits(kStochastic ? Convert::stochastic(x[j], draw16(draws, j)) : Convert::nearest(x[j]))
            << (j * kBits % 32);
      }
      store_words<F>(to.row, to.dim, c, to.grain, words);
    });
  }

 private:
  static __device__ uint32_t bits(float v) { return float_bits(v); }
  static __device__ uint32_t bits(uint16_t v) { return v; }
};

template <class F>
struct AffineWriter {
  template <bool kLong, bool kStochastic, class At>
  static __device__ __forceinline__ void write(const Tile& tile, const Target& to, At at) {
    float mn = INFINITY, mx = -INFINITY;
    each_chunk<kLong>(tile, to.dim, [&](int32_t c) {
      float x[kChunk];
      at(c, x);
      fill_beyond(x, to.dim - c, x[0]);
      MPE_UNROLL
      for (int j = 0; j < kChunk; ++j) {
        mn = x[j] < mn ? x[j] : mn;
        mx = x[j] > mx ? x[j] : mx;
      }
    });
    tile.range(mn, mx);
    const AffineHeader h = F::fit(mn, mx);
    if (tile.lane == 0) {
      with_grain(to.grain,
                 [&](auto g) { Chunk<F, decltype(g)::value>::store_header(to.row, to.dim, h); });
    }
    const float inv = h.scale == 0.0f ? 0.0f : 1.0f / h.scale;
    each_chunk<kLong>(tile, to.dim, [&](int32_t c) {
      uint32_t words[Chunk<F, kChunk>::kWords] = {};
      if (h.scale != 0.0f) {
        float x[kChunk];
        at(c, x);
        fill_beyond(x, to.dim - c, h.bias);  // pad bits are zero, as the bias' code is
        encode<kStochastic>(x, h, inv, to.draws(c, kStochastic), words);
      }
      store_words<F>(to.row, to.dim, c, to.grain, words);
    });
  }

 private:
  template <bool kStochastic>
  static __device__ __forceinline__ void encode(const float* x, AffineHeader h, float inv,
                                                const Philox4& draws, uint32_t* words) {
    constexpr int kBits = F::kBitsPerCode;
    MPE_UNROLL
    for (int j = 0; j < kChunk; ++j) {
      const uint32_t code = kStochastic
                                ? affine_stochastic(x[j], h, inv, F::kLevels, draw16(draws, j))
                                : affine_nearest(x[j], h, inv, F::kLevels);
      words[j * kBits / 32] |= code << (j * kBits % 32);
    }
  }
};

template <class F>
using RowWriter = std::conditional_t<F::kHeaderBytes == 0, PlainWriter<F>, AffineWriter<F>>;

// Encodes a row by the tile.
template <class F, bool kLong, class At>
__device__ __forceinline__ void write_row(const Tile& tile, const Target& to, bool stochastic,
                                          At at) {
  if (!F::kExact && stochastic) {
    RowWriter<F>::template write<kLong, true>(tile, to, at);
  } else {
    RowWriter<F>::template write<kLong, false>(tile, to, at);
  }
}

// The same for a row of a table, whatever its format.
template <bool kLong, class At>
__device__ __forceinline__ void write_table_row(const Tile& tile, const Tables& tables,
                                                const Rounding& rounding, const mpe_table& table,
                                                int64_t number, At at) {
  with_format(table.precision, [&](auto f) {
    using F = decltype(f);
    const int32_t dim = tables.dim;
    const Target to{rounding.stream(kDomainRow, table, number),
                    table.rows + number * F::row_bytes(dim), dim, tables.grain};
    write_row<F, kLong>(tile, to, rounding.stochastic(), at);
  });
}

// The chunk of a table's row, whatever its format.
__device__ __forceinline__ void read_table_chunk(const Tables& tables, const mpe_table& table,
                                                 int64_t number, int32_t c, float* x) {
  with_format(table.precision, [&](auto f) {
    using F = decltype(f);
    read_chunk<F>(table.rows + number * F::row_bytes(tables.dim), tables.dim, c, tables.grain, x);
  });
}

// A lane's part of a row while it is worked on: in registers, or a long row's in memory that has
// room for whole chunks.
template <bool kLong>
class Part {
 public:
  __device__ explicit Part(float*) {}
  __device__ __forceinline__ void load(int32_t, float* x) const {
    MPE_UNROLL
    for (int j = 0; j < kChunk; ++j) x[j] = v_[j];
  }
  __device__ __forceinline__ void save(int32_t, const float* x) {
    MPE_UNROLL
    for (int j = 0; j < kChunk; ++j) v_[j] = x[j];
  }

 private:
  float v_[kChunk] = {};
};

template <>
class Part<true> {
 public:
  __device__ explicit Part(float* row) : row_(row) {}
  __device__ __forceinline__ void load(int32_t c, float* x) const {
    load_floats(row_ + c, kChunk, x);
  }
  __device__ __forceinline__ void save(int32_t c, const float* x) {
    store_floats(row_ + c, kChunk, x);
  }

 private:
  float* row_;
};

inline int64_t whole_chunks(int32_t dim) { return ceil_div(dim, kChunk) * kChunk; }

}  // namespace cuda
}  // namespace mpembed
