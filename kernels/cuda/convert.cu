// Whole-matrix conversions: quantize, dequantize, bit packing, stochastic rounding, row writes and
// initial values.
#include "cuda/kernels.h"
#include "cuda/probe.cuh"
#include "cuda/row.cuh"
#include "mpembed/init.h"

namespace mpembed {
namespace cuda {
namespace {

__global__ void clear_kernel(mpe_error* error) { *error = mpe_error MPE_NO_ERROR; }

__global__ void check_values_kernel(const float* x, int64_t n, int32_t dim, int32_t shift,
                                    uint32_t bound, mpe_error* error) {
  const Tile tile(shift);
  const int64_t i = tile.index();
  if (i >= n) return;
  bool bad = false;
  each_chunk<true>(tile, dim, [&](int32_t c) {
    float v[kChunk];
    load_floats(x + i * dim + c, dim - c, v);
    MPE_UNROLL
    for (int j = 0; j < kChunk; ++j) bad |= (float_bits(v[j]) & 0x7FFFFFFFu) > bound;
  });
  if (!tile.any(bad) || tile.lane != 0) return;
  error->status = MPE_ERR_VALUE;
  atomic_min64(&error->position, i);
  atomic_add64(&error->count, 1);
}

// Passes a row of a matrix to write_row; a row of one round is kept in registers.
template <bool kLong>
class MatrixRow {
 public:
  __device__ __forceinline__ MatrixRow(const Tile& tile, const float* x, int32_t dim)
      : x_(x), dim_(dim) {
    if constexpr (!kLong) {
      each_chunk<kLong>(tile, dim, [&](int32_t c) { load_floats(x_ + c, dim_ - c, v_); });
    }
  }
  __device__ __forceinline__ void operator()(int32_t c, float* x) const {
    if constexpr (kLong) {
      load_floats(x_ + c, dim_ - c, x);
    } else {
      MPE_UNROLL
      for (int j = 0; j < kChunk; ++j) x[j] = v_[j];
    }
  }

 private:
  const float* x_;
  int32_t dim_;
  float v_[kChunk] = {};
};

// Rows of one format that belong to no table.
struct Matrix {
  int64_t n;
  int32_t dim, alignment, shift;

  int64_t lanes() const { return n << shift; }
};

template <class Format>
Matrix make_matrix(int64_t n, int64_t dim, const uint8_t* rows) {
  ColumnAlignment alignment(dim);
  alignment.add<Format>(rows, Format::row_bytes(dim));
  const int32_t columns = static_cast<int32_t>(dim);
  return Matrix{n, columns, alignment.columns(), tile_shift(columns)};
}

// Blocks that a multiprocessor should hold.
template <class Format, bool kLong>
constexpr int quantize_blocks() {
  if (std::is_same<typename Format::Family, PlainFamily>::value) return kLong ? 6 : 8;
  return kLong ? 4 : 6;
}

template <class Format, bool kLong>
__global__ void __launch_bounds__(kThreads, (quantize_blocks<Format, kLong>()))
    quantize_kernel(Matrix matrix, const float* x, uint64_t seed, uint64_t step, int32_t random,
                    uint8_t* rows) {
  const Tile tile(matrix.shift);
  const int64_t i = tile.index();
  if (i >= matrix.n) return;
  const RowStream stream(seed, kDomainRow, 0, static_cast<uint64_t>(i), step);
  const Target target{stream, rows + i * Format::row_bytes(matrix.dim), matrix.dim,
                      matrix.alignment};
  write_row<Format, kLong>(tile, target, random != 0,
                           MatrixRow<kLong>(tile, x + i * matrix.dim, matrix.dim));
}

template <class Format, bool kLong>
__global__ void dequantize_kernel(Matrix matrix, const uint8_t* rows, float* x) {
  const Tile tile(matrix.shift);
  const int64_t i = tile.index();
  if (i >= matrix.n) return;
  each_chunk<kLong>(tile, matrix.dim, [&](int32_t c) {
    float v[kChunk];
    read_chunk<Format>(rows + i * Format::row_bytes(matrix.dim), matrix.dim, c, matrix.alignment,
                       v);
    store_floats(x + i * matrix.dim + c, matrix.dim - c, v);
  });
}

__global__ void check_codes_kernel(const uint8_t* codes, int64_t n, int32_t bits,
                                   mpe_error* error) {
  const int64_t i = thread_index();
  if (i >= n || codes[i] >> bits == 0) return;
  error->status = MPE_ERR_VALUE;
  atomic_min64(&error->position, i);
  atomic_add64(&error->count, 1);
}

__global__ void code_found_kernel(const uint8_t* codes, mpe_error* error) {
  if (error->status != MPE_OK) error->value = codes[error->position];
}

// A thread packs one byte.
template <int kBits>
__global__ void pack_kernel(const uint8_t* codes, int64_t n, int64_t dim, int64_t bytes,
                            uint8_t* packed) {
  constexpr int kPerByte = 8 / kBits;
  const int64_t i = thread_index();
  if (i >= n * bytes) return;
  const uint8_t* row = codes + i / bytes * dim;
  uint32_t byte = 0;
  for (int j = 0; j < kPerByte; ++j) {
    const int64_t c = i % bytes * kPerByte + j;
    if (c < dim) byte |= (row[c] & ((1u << kBits) - 1u)) << (kBits * j);
  }
  packed[i] = static_cast<uint8_t>(byte);
}

template <int kBits>
__global__ void unpack_kernel(const uint8_t* packed, int64_t n, int64_t dim, int64_t bytes,
                              uint8_t* codes) {
  constexpr int kPerByte = 8 / kBits;
  const int64_t i = thread_index();
  if (i >= n * dim) return;
  const int64_t c = i % dim;
  const uint32_t byte = packed[i / dim * bytes + c / kPerByte];
  codes[i] = static_cast<uint8_t>((byte >> (kBits * (c % kPerByte))) & ((1u << kBits) - 1u));
}

// A thread rounds eight elements, those of one Philox block.
template <class Convert>
__global__ void stochastic_round_kernel(const float* x, int64_t n, uint64_t seed, uint64_t step,
                                        uint16_t* out) {
  constexpr int64_t kLine = MPE_ROUND_COLUMNS;
  const int64_t first = thread_index() * kChunk;
  if (first >= n) return;
  const RowStream stream(seed, kDomainRound, 0, static_cast<uint64_t>(first / kLine), step);
  const Philox4 block = stream.block(static_cast<uint32_t>(first % kLine / 8));
  const int32_t columns = n - first < kChunk ? static_cast<int32_t>(n - first) : kChunk;
  float v[kChunk];
  load_floats(x + first, columns, v);
  uint32_t words[4] = {};
  MPE_UNROLL
  for (int j = 0; j < kChunk; ++j) {
    words[j / 2] |= static_cast<uint32_t>(Convert::stochastic(v[j], draw16(block, j)))
                    << (j % 2 * 16);
  }
  if (wide(out + first, columns)) {
    store_piece<16>(reinterpret_cast<uint8_t*>(out + first), words);
    return;
  }
  MPE_UNROLL
  for (int j = 0; j < kChunk; ++j) {
    if (j < columns) out[first + j] = static_cast<uint16_t>(words[j / 2] >> (j % 2 * 16));
  }
}

template <bool kLong>
__global__ void write_rows_kernel(Tables tables, Rounding rounding, mpe_cache cache, int32_t shift,
                                  const uint64_t* keys, int64_t n, const float* values) {
  const Tile tile(shift);
  const int64_t i = tile.index();
  const int32_t dim = tables.dim;
  if (i >= n) return;
  const uint64_t key = keys[i];
  const mpe_table& table = tables.table[tables.find(key)];
  const MatrixRow<kLong> row(tile, values + i * dim, dim);
  const int64_t slot =
      cache.tags == nullptr ? -1 : probe(cache.tags, cache.num_sets, cache.ways, key);
  if (slot >= 0) {
    each_chunk<kLong>(tile, dim, [&](int32_t c) {
      float x[kChunk];
      row(c, x);
      store_floats(cache.rows + slot * tables.slot_floats() + c, dim - c, x);
    });
    if (tile.lane == 0) {
      mark_dirty(cache, slot);
      mark_written(cache.changed, slot);
    }
    return;
  }
  const int64_t number = static_cast<int64_t>(key) - table.base;
  if (tile.lane == 0) mark_written(table.changed, number);
  write_table_row<kLong>(tile, tables, rounding, table, number, row);
}

// The initial values of the chunk at column c: two blocks of four 24-bit draws.
__device__ void initial_values(const RowStream& stream, int32_t kind, float a, float b, int32_t c,
                               float* x) {
  for (int half = 0; half < 2; ++half) {
    const Philox4 block = stream.block(static_cast<uint32_t>(c / 4 + half));
    MPE_UNROLL
    for (int j = 0; j < 4; ++j) {
      const uint32_t w = block.w[j] >> 8;
      const float drawn = kind == MPE_init_uniform ? uniform_value(w, a, b) : normal_value(w, a);
      x[half * 4 + j] = kind == MPE_init_zeros ? 0.0f : drawn;
    }
  }
}

template <bool kLong>
__global__ void init_rows_kernel(Tables tables, NewRounding rounding, int32_t shift, int32_t t,
                                 int32_t kind, float a, float b) {
  const Tile tile(shift);
  const int64_t row = tile.index();
  const mpe_table& table = tables.table[t];
  if (row >= table.num_rows) return;
  if (tile.lane == 0) mark_written(table.changed, row);
  const RowStream stream = rounding.stream(kDomainInit, table, row);
  RowFragment<false> fragment(nullptr);
  if (!kLong) {
    float x[kChunk];
    initial_values(stream, kind, a, b, tile.lane * kChunk, x);
    fragment.save(0, x);
  }
  write_table_row<kLong>(tile, tables, rounding, table, row, [&](int32_t c, float* x) {
    // A long row is drawn again for each pass, which is cheaper than keeping it.
    if (kLong) return initial_values(stream, kind, a, b, c, x);
    fragment.load(c, x);
  });
}

}  // namespace

mpe_status check_values(const float* x, int64_t n, int64_t dim, int32_t precision, void* stream,
                        mpe_error* error) {
  MPE_TRY(launch_one("check_values", stream, clear_kernel, error));
  const uint32_t bound =
      with_format(precision, [](auto format) { return decltype(format)::kMaxAbsBits; });
  const int32_t columns = static_cast<int32_t>(dim), shift = tile_shift(columns);
  return launch("check_values", stream, n << shift, check_values_kernel, x, n, columns, shift,
                bound, error);
}

mpe_status quantize(const float* x, int64_t n, int64_t dim, int32_t precision, int32_t rounding,
                    uint64_t seed, uint64_t step, uint8_t* rows, void* stream) {
  return with_format(precision, [&](auto format) {
    using Format = decltype(format);
    const Matrix matrix = make_matrix<Format>(n, dim, rows);
    const int32_t random = rounding != MPE_rounding_nearest ? 1 : 0;
    return with_rounds(matrix.dim, [&](auto rounds) {
      return launch("quantize", stream, matrix.lanes(),
                    quantize_kernel<Format, decltype(rounds)::value>, matrix, x, seed, step, random,
                    rows);
    });
  });
}

mpe_status dequantize(const uint8_t* rows, int64_t n, int64_t dim, int32_t precision, float* x,
                      void* stream) {
  return with_format(precision, [&](auto format) {
    using Format = decltype(format);
    const Matrix matrix = make_matrix<Format>(n, dim, rows);
    return with_rounds(matrix.dim, [&](auto rounds) {
      return launch("dequantize", stream, matrix.lanes(),
                    dequantize_kernel<Format, decltype(rounds)::value>, matrix, rows, x);
    });
  });
}

mpe_status check_codes(const uint8_t* codes, int64_t n, int32_t bits, void* stream,
                       mpe_error* error) {
  MPE_TRY(launch_one("check_codes", stream, clear_kernel, error));
  MPE_TRY(launch("check_codes", stream, n, check_codes_kernel, codes, n, bits, error));
  return launch_one("check_codes", stream, code_found_kernel, codes, error);
}

mpe_status pack_codes(const uint8_t* codes, int64_t n, int64_t dim, int32_t bits, uint8_t* packed,
                      void* stream) {
  const int64_t bytes = ceil_div(dim * bits, 8);
  return launch("pack", stream, n * bytes, bits == 4 ? pack_kernel<4> : pack_kernel<2>, codes, n,
                dim, bytes, packed);
}

mpe_status unpack_codes(const uint8_t* packed, int64_t n, int64_t dim, int32_t bits, uint8_t* codes,
                        void* stream) {
  const int64_t bytes = ceil_div(dim * bits, 8);
  return launch("unpack", stream, n * dim, bits == 4 ? unpack_kernel<4> : unpack_kernel<2>, packed,
                n, dim, bytes, codes);
}

mpe_status stochastic_round(const float* x, int64_t n, int32_t precision, uint64_t seed,
                            uint64_t step, uint16_t* out, void* stream) {
  return launch("stochastic_round", stream, ceil_div(n, 8),
                precision == MPE_format_fp16 ? stochastic_round_kernel<ConvertFp16>
                                             : stochastic_round_kernel<ConvertBf16>,
                x, n, seed, step, out);
}

mpe_status write_rows(const mpe_group* group, const uint64_t* keys, int64_t n, const float* values,
                      void* stream) {
  const mpe_cache cache = group->cache != nullptr ? *group->cache : mpe_cache{};
  const int32_t shift = tile_shift(group->dim);
  return with_rounds(group->dim, [&](auto rounds) {
    return launch("set_rows", stream, n << shift, write_rows_kernel<decltype(rounds)::value>,
                  Tables(*group), Rounding(*group), cache, shift, keys, n, values);
  });
}

mpe_status init_rows(const mpe_group* group, int32_t t, int32_t kind, float a, float b,
                     void* stream) {
  const int32_t shift = tile_shift(group->dim);
  return with_rounds(group->dim, [&](auto rounds) {
    return launch("init_rows", stream, group->tables[t].num_rows << shift,
                  init_rows_kernel<decltype(rounds)::value>, Tables(*group), NewRounding(*group),
                  shift, t, kind, a, b);
  });
}

}  // namespace cuda
}  // namespace mpembed
