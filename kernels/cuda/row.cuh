// Rows read and written by a tile of lanes, eight neighbouring columns a lane; rows of more than
// 256 columns in rounds.
#pragma once

#include "cuda/codes.cuh"

namespace mpembed {
namespace cuda {

// Lanes of a warp that share a row: a power of two. All of them call the collectives together.
struct Tile {
  int32_t shift;  // the logarithm of their number
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
  // Every lane gets the smallest `low` and the largest `high` of all.
  __device__ void range(float& low, float& high) const {
    for (int s = 1 << shift >> 1; s > 0; s >>= 1) {
      const float lower = __shfl_xor_sync(mask, low, s), higher = __shfl_xor_sync(mask, high, s);
      low = fminf(low, lower);
      high = fmaxf(high, higher);
    }
  }
};

constexpr int32_t kRound = kWarp * kChunk;  // columns that a warp holds at once

// The logarithm of the lanes that share a row of `dim` columns, `each` columns per lane.
inline int32_t tile_shift(int32_t dim, int32_t each = kChunk) {
  int32_t shift = 0;
  while ((1 << shift) < kWarp && (each << shift) < dim) ++shift;
  return shift;
}

// Calls function(std::true_type{}) if a row takes several rounds, else with std::false_type.
template <class Function>
mpe_status with_rounds(int32_t dim, Function function) {
  if (dim > kRound) return function(std::true_type{});
  return function(std::false_type{});
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

// Fills the columns beyond the row with `value`.
__device__ __forceinline__ void fill_beyond(float* x, int32_t columns, float value) {
  if (!kModel && columns < kChunk) {
    MPE_UNROLL
    for (int j = 0; j < kChunk; ++j) x[j] = j < columns ? x[j] : value;
  }
}

// The values of a stored row's chunk at column c; zero beyond the row.
template <class Format>
__device__ __forceinline__ void read_chunk(const uint8_t* row, int32_t dim, int32_t c,
                                           int32_t alignment, float* x) {
  with_alignment(alignment, [&](auto columns) {
    using Columns = Chunk<Format, decltype(columns)::value>;
    uint32_t raw[Columns::kRaw], header[Columns::kRawHeader + 1], words[Columns::kWords];
    Columns::load_header(row + Format::code_bytes(dim), header);
    Columns::load(row + Columns::offset(c), dim - c, raw);
    const typename Format::RowHeader h = Columns::header(header);
    Columns::join(raw, words);
    MPE_UNROLL
    for (int j = 0; j < kChunk; ++j) x[j] = Columns::value(words, h, j);
  });
  fill_beyond(x, dim - c, 0.0f);
}

template <class Format>
__device__ __forceinline__ void store_words(uint8_t* row, int32_t dim, int32_t c, int32_t alignment,
                                            const uint32_t* words) {
  with_alignment(alignment, [&](auto columns) {
    using Columns = Chunk<Format, decltype(columns)::value>;
    Columns::store(row + Columns::offset(c), dim - c, words);
  });
}

// Where an encoded row goes, and the random bits of its rounding.
struct Target {
  RowStream stream;
  uint8_t* row;
  int32_t dim;
  int32_t alignment;
  bool paired = false;  // the row there is to be overwritten by paired rounding

  __device__ __forceinline__ Philox4 draws(int32_t c, bool stochastic) const {
    return stochastic ? stream.block(static_cast<uint32_t>(c / kChunk)) : Philox4{};
  }
};

// Row writers, one per family of formats. values(c, x) fills x with the chunk at column c, all of
// it storable; columns beyond the row may hold anything.
template <class Format>
struct PlainWriter {
  using Convert = typename Format::Convert;

  template <bool kLong, bool kStochastic, class Values>
  static __device__ __forceinline__ void write(const Tile& tile, const Target& target,
                                               Values values) {
    each_chunk<kLong>(tile, target.dim, [&](int32_t c) {
      float x[kChunk];
      values(c, x);
      const Philox4 draws = target.draws(c, kStochastic);
      uint32_t words[Chunk<Format, kChunk>::kWords] = {};
      MPE_UNROLL
      for (int j = 0; j < kChunk; ++j) {
        put_bits<Format::kBitsPerCode>(words, j, encode<kStochastic>(x[j], draws, j));
      }
      store_words<Format>(target.row, target.dim, c, target.alignment, words);
    });
  }

  // The bits of a value in column j of a block of draws.
  template <bool kStochastic>
  static __device__ __forceinline__ uint32_t encode(float x, const Philox4& draws, int j) {
    return bits(kStochastic ? Convert::stochastic(x, draw16(draws, j)) : Convert::nearest(x));
  }

 private:
  static __device__ uint32_t bits(float v) { return float_bits(v); }
  static __device__ uint32_t bits(uint16_t v) { return v; }
};

template <class Format>
struct AffineWriter {
  template <bool kLong, bool kStochastic, class Values>
  static __device__ __forceinline__ void write(const Tile& tile, Target target, Values values) {
    float low = INFINITY, high = -INFINITY;
    each_chunk<kLong>(tile, target.dim, [&](int32_t c) {
      float x[kChunk];
      values(c, x);
      fill_beyond(x, target.dim - c, x[0]);
      MPE_UNROLL
      for (int j = 0; j < kChunk; ++j) {
        low = fminf(low, x[j]);
        high = fmaxf(high, x[j]);
      }
    });
    tile.range(low, high);
    Pair pair;
    if (kStochastic && target.paired) pair = pair_of(tile, target, low, high);
    const AffineHeader header = fit(low, high, pair.kind == kFirstOfPair);
    if (pair.kind == kFirstOfPair) pair.nonce = Format::HeaderType::nonce(header);
    if (pair.kind != kSingleWrite) target.stream = target.stream.pair(pair.nonce);
    if (tile.lane == 0) {
      with_alignment(target.alignment, [&](auto columns) {
        uint8_t* to = target.row + Format::code_bytes(target.dim);
        Chunk<Format, decltype(columns)::value>::store_header(to, header);
      });
    }
    const RowCodes<Format> codes(header, low, high);
    each_chunk<kLong>(tile, target.dim, [&](int32_t c) {
      uint32_t words[Chunk<Format, kChunk>::kWords] = {};
      if (header.scale != 0.0f) {
        float x[kChunk];
        values(c, x);
        fill_beyond(x, target.dim - c, header.bias);  // pad bits are zero, the code of the bias
        codes.template encode<kStochastic>(x, target.dim - c, target.draws(c, kStochastic), words);
      }
      store_words<Format>(target.row, target.dim, c, target.alignment, words);
    });
  }

 private:
  struct Pair {
    float kind = kSingleWrite;
    uint32_t nonce = 0;
  };

  // From the row to be overwritten. The tile's first lane, which will store the new header, reads
  // the old one for all.
  static __device__ __forceinline__ Pair pair_of(const Tile& tile, const Target& target, float low,
                                                 float high) {
    alignas(8) uint32_t words[Format::kHeaderBytes / 4] = {};
    if (tile.lane == 0) {
      with_alignment(target.alignment, [&](auto columns) {
        Chunk<Format, decltype(columns)::value>::load_header_words(
            target.row + Format::code_bytes(target.dim), words);
      });
    }
    const AffineHeader old = Format::header(reinterpret_cast<const uint8_t*>(words), 0);
    const uint32_t nonce = Format::kHeaderBytes == 4 ? words[0] : Format::HeaderType::nonce(old);
    return {tile.shuffle(Format::paired_write(old, low, high), 0), tile.shuffle(nonce, 0)};
  }

  static __device__ __forceinline__ AffineHeader fit(float low, float high, bool mirror) {
    const AffineHeader header = Format::fit(mirror ? -high : low, mirror ? -low : high);
    const AffineHeader other = mirrored(header);
    return {mirror ? other.scale : header.scale, mirror ? other.bias : header.bias};
  }
};

// The writer of a format's family.
template <class Format, class Family = typename Format::Family>
struct RowWriter;
template <class Format>
struct RowWriter<Format, PlainFamily> : PlainWriter<Format> {};
template <class Format>
struct RowWriter<Format, AffineFamily> : AffineWriter<Format> {};

// Encodes a row; all lanes of the tile call it.
template <class Format, bool kLong, class Values>
__device__ __forceinline__ void write_row(const Tile& tile, const Target& target, bool random,
                                          Values values) {
  if (!Format::kExact && random) {
    RowWriter<Format>::template write<kLong, true>(tile, target, values);
  } else {
    RowWriter<Format>::template write<kLong, false>(tile, target, values);
  }
}

// The same for a table's row, in the table's format.
template <bool kLong, class RowRounding, class Values>
__device__ __forceinline__ void write_table_row(const Tile& tile, const Tables& tables,
                                                const RowRounding& rounding, const mpe_table& table,
                                                int64_t row, Values values) {
  with_format(table.precision, [&](auto format) {
    const Target target{rounding.stream(kDomainRow, table, row),
                        table.rows + row * table.row_stride, tables.dim, tables.alignment,
                        rounding.paired()};
    write_row<decltype(format), kLong>(tile, target, rounding.random(), values);
  });
}

// A chunk of a table's row, in the table's format.
__device__ __forceinline__ void read_table_chunk(const Tables& tables, const mpe_table& table,
                                                 int64_t row, int32_t c, float* x) {
  with_format(table.precision, [&](auto format) {
    read_chunk<decltype(format)>(table.rows + row * table.row_stride, tables.dim, c,
                                 tables.alignment, x);
  });
}

// A lane's columns of a row that is being worked on: in registers, or for a long row in memory with
// room for whole chunks.
template <bool kLong>
class RowFragment {
 public:
  RowFragment() = default;
  __device__ explicit RowFragment(float*) {}
  __device__ void place(float*) {}
  __device__ __forceinline__ void load(int32_t, float* x) const {
    MPE_UNROLL
    for (int j = 0; j < kChunk; ++j) x[j] = values_[j];
  }
  __device__ __forceinline__ void save(int32_t, const float* x) {
    MPE_UNROLL
    for (int j = 0; j < kChunk; ++j) values_[j] = x[j];
  }

 private:
  float values_[kChunk] = {};
};

template <>
class RowFragment<true> {
 public:
  RowFragment() = default;
  __device__ explicit RowFragment(float* row) : row_(row) {}
  __device__ void place(float* row) { row_ = row; }
  __device__ __forceinline__ void load(int32_t c, float* x) const {
    load_floats(row_ + c, kChunk, x);
  }
  __device__ __forceinline__ void save(int32_t c, const float* x) {
    store_floats(row_ + c, kChunk, x);
  }

 private:
  float* row_ = nullptr;
};

inline int64_t whole_chunks(int32_t dim) { return ceil_div(dim, kChunk) * kChunk; }

}  // namespace cuda
}  // namespace mpembed
