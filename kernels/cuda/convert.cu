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

template <int W>
__global__ void check_values_kernel(const float* x, int64_t n, int64_t dim, uint32_t bound,
                                    mpe_error* error) {
  const Tile<W> tile;
  const int64_t i = Tile<W>::index();
  if (i >= n) return;
  bool bad = false;
  for (int64_t c = tile.lane; c < dim; c += W) {
    bad = bad || (float_bits(x[i * dim + c]) & 0x7FFFFFFFu) > bound;
  }
  if (!tile.any(bad) || tile.lane != 0) return;
  error->status = MPE_ERR_VALUE;
  atomic_min64(&error->position, i);
  atomic_add64(&error->count, 1);
}

template <class F, int W>
__global__ void quantize_kernel(const float* x, int64_t n, int64_t dim, uint64_t seed,
                                uint64_t step, int32_t stochastic, uint8_t* rows) {
  const Tile<W> tile;
  const int64_t i = Tile<W>::index();
  if (i >= n) return;
  const RowStream stream(seed, kDomainRow, 0, static_cast<uint64_t>(i), step);
  uint8_t* row = rows + i * F::row_bytes(dim);
  const auto at = [&](int64_t k) { return x[i * dim + tile.lane + W * k]; };
  if (stochastic) {
    RowWriter<F>::template write<W, 0, true>(tile, stream, dim, row, at);
  } else {
    RowWriter<F>::template write<W, 0, false>(tile, stream, dim, row, at);
  }
}

template <class F, int W>
__global__ void dequantize_kernel(const uint8_t* rows, int64_t n, int64_t dim, float* x) {
  const Tile<W> tile;
  const int64_t i = Tile<W>::index();
  if (i >= n) return;
  const RowReader<F> row(rows + i * F::row_bytes(dim), dim);
  for (int64_t c = tile.lane; c < dim; c += W) x[i * dim + c] = row(c);
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

// One packed byte a thread.
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

// Eight elements a thread: those of one Philox block.
template <class Convert>
__global__ void stochastic_round_kernel(const float* x, int64_t n, uint64_t seed, uint64_t step,
                                        uint16_t* out) {
  constexpr int64_t kLine = 1024;
  const int64_t first = thread_index() * 8;
  if (first >= n) return;
  const RowStream stream(seed, kDomainRound, 0, static_cast<uint64_t>(first / kLine), step);
  const Philox4 block = stream.block(static_cast<uint32_t>(first % kLine / 8));
  for (int64_t j = 0; j < 8 && first + j < n; ++j) {
    out[first + j] = Convert::stochastic(x[first + j], draw16(block, j));
  }
}

template <int W>
__global__ void write_rows_kernel(Tables tables, Rounding rounding, mpe_cache cache,
                                  const uint64_t* keys, int64_t n, const float* values) {
  const Tile<W> tile;
  const int64_t i = Tile<W>::index(), dim = tables.dim;
  if (i >= n) return;
  const uint64_t key = keys[i];
  const mpe_table& table = tables.table[tables.find(key)];
  const float* x = values + i * dim;
  const int64_t slot =
      cache.tags == nullptr ? -1 : probe(cache.tags, cache.num_sets, cache.ways, key);
  if (slot >= 0) {
    for (int64_t c = tile.lane; c < dim; c += W) cache.rows[slot * dim + c] = x[c];
    if (tile.lane == 0) mark_dirty(cache, slot);
    return;
  }
  const int64_t number = static_cast<int64_t>(key) - table.base;
  with_format(table.precision, [&](auto f) {
    using F = typename decltype(f)::type;
    write_row<F>(tile, rounding, kDomainRow, table, number, dim,
                 table.rows + number * F::row_bytes(dim),
                 [&](int64_t k) { return x[tile.lane + W * k]; });
  });
}

__device__ float initial_value(const RowStream& stream, int32_t kind, float a, float b, int64_t c) {
  if (kind == MPE_init_zeros) return 0.0f;
  const Philox4 block = stream.block(static_cast<uint32_t>(c / 4));
  const int word = static_cast<int>(c % 4);
  const uint32_t w =
      word < 2 ? (word == 0 ? block.w[0] : block.w[1]) : (word == 2 ? block.w[2] : block.w[3]);
  return kind == MPE_init_uniform ? uniform_value(w >> 8, a, b) : normal_value(w >> 8, a);
}

template <int W>
__global__ void init_rows_kernel(Tables tables, Rounding rounding, int32_t t, int32_t kind, float a,
                                 float b) {
  const Tile<W> tile;
  const int64_t row = Tile<W>::index(), dim = tables.dim;
  const mpe_table& table = tables.table[t];
  if (row >= table.num_rows) return;
  const RowStream stream = rounding.stream(kDomainInit, table, row);
  with_format(table.precision, [&](auto f) {
    using F = typename decltype(f)::type;
    // Drawn again where it is needed again: cheaper than keeping a row of any length.
    write_row<F>(tile, rounding, kDomainRow, table, row, dim, table.rows + row * F::row_bytes(dim),
                 [&](int64_t k) { return initial_value(stream, kind, a, b, tile.lane + W * k); });
  });
}

// Calls f with the width and the format as types.
template <class F>
mpe_status with_width_and_format(int64_t dim, int32_t precision, F f) {
  return with_width(static_cast<int32_t>(dim), [&](auto width) {
    return with_format(precision, [&](auto format) { return f(width, format); });
  });
}

}  // namespace

mpe_status check_values(const float* x, int64_t n, int64_t dim, int32_t precision, void* stream,
                        mpe_error* error) {
  MPE_TRY(launch_one("check_values", stream, clear_kernel, error));
  const uint32_t bound =
      with_format(precision, [](auto f) { return decltype(f)::type::kMaxAbsBits; });
  return with_width(static_cast<int32_t>(dim), [&](auto width) {
    constexpr int W = decltype(width)::value;
    return launch("check_values", stream, n * W, check_values_kernel<W>, x, n, dim, bound, error);
  });
}

mpe_status quantize(const float* x, int64_t n, int64_t dim, int32_t precision, int32_t rounding,
                    uint64_t seed, uint64_t step, uint8_t* rows, void* stream) {
  return with_width_and_format(dim, precision, [&](auto width, auto f) {
    using F = typename decltype(f)::type;
    constexpr int W = decltype(width)::value;
    const int32_t stochastic = !F::kExact && rounding == MPE_rounding_stochastic ? 1 : 0;
    return launch("quantize", stream, n * W, quantize_kernel<F, W>, x, n, dim, seed, step,
                  stochastic, rows);
  });
}

mpe_status dequantize(const uint8_t* rows, int64_t n, int64_t dim, int32_t precision, float* x,
                      void* stream) {
  return with_width_and_format(dim, precision, [&](auto width, auto f) {
    using F = typename decltype(f)::type;
    constexpr int W = decltype(width)::value;
    return launch("dequantize", stream, n * W, dequantize_kernel<F, W>, rows, n, dim, x);
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

mpe_status write_rows(const mpe_group* g, const uint64_t* keys, int64_t n, const float* values,
                      void* stream) {
  const mpe_cache cache = g->cache != nullptr ? *g->cache : mpe_cache{};
  return with_width(g->dim, [&](auto width) {
    constexpr int W = decltype(width)::value;
    return launch("set_rows", stream, n * W, write_rows_kernel<W>, Tables(*g), Rounding(*g), cache,
                  keys, n, values);
  });
}

mpe_status init_rows(const mpe_group* g, int32_t t, int32_t kind, float a, float b, void* stream) {
  return with_width(g->dim, [&](auto width) {
    constexpr int W = decltype(width)::value;
    return launch("init_rows", stream, g->tables[t].num_rows * W, init_rows_kernel<W>, Tables(*g),
                  Rounding(*g), t, kind, a, b);
  });
}

}  // namespace cuda
}  // namespace mpembed
