// Rows read and written by a tile of lanes: lane l has the columns l, l + W, l + 2W, ...
//
// The lane tree of docs/numerics.md (section 5) is this layout with W = 32; narrower tiles serve
// rows of at most W columns, whose other lanes hold zero.
#pragma once

#include "cuda/group.cuh"
#include "mpembed/reduce.h"

namespace mpembed {
namespace cuda {

// W lanes of a warp: 8, 16 or 32. All of them call every member together.
template <int W>
struct Tile {
  int lane;
  unsigned mask;

  __device__ Tile() {
    const int in_warp = lane_index();
    lane = in_warp & (W - 1);
    mask = W == kWarp ? kFullMask : ((1u << (W & 31)) - 1u) << (in_warp & ~(W - 1));
  }

  // Number of the tile in the grid.
  static __device__ int64_t index() { return thread_index() / W; }

  template <class T>
  __device__ T shuffle(T v, int from) const {
    return __shfl_sync(mask, v, from, W);
  }
  __device__ float min(float v) const {
    for (int s = W / 2; s > 0; s >>= 1) {
      const float other = __shfl_xor_sync(mask, v, s, W);
      v = other < v ? other : v;
    }
    return v;
  }
  __device__ float max(float v) const {
    for (int s = W / 2; s > 0; s >>= 1) {
      const float other = __shfl_xor_sync(mask, v, s, W);
      v = other > v ? other : v;
    }
    return v;
  }
  __device__ bool any(bool v) const { return __any_sync(mask, v) != 0; }

  // The lane tree's fold; every lane gets the result.
  __device__ float fold(float v) const {
    for (int s = kTreeLanes / 2; s >= W; s >>= 1) v = v + 0.0f;
    for (int s = W / 2; s > 0; s >>= 1) v = v + __shfl_down_sync(mask, v, s, W);
    return __shfl_sync(mask, v, 0, W);
  }
};

// The narrowest tile for a dimension: calls f with an integral constant.
template <class F>
mpe_status with_width(int32_t dim, F f) {
  if (dim <= 8) return f(std::integral_constant<int, 8>{});
  if (dim <= 16) return f(std::integral_constant<int, 16>{});
  return f(std::integral_constant<int, 32>{});
}

// The 16-bit draws of a row, eight columns a Philox block. A tile computes W blocks at a time, one
// a lane, which serve 8 * W columns.
template <int W>
class Draws {
 public:
  __device__ Draws(const Tile<W>& tile, const RowStream& stream) : tile_(tile), stream_(stream) {}

  // Draw of column lane + W * k; k ascends from 0 in steps of one.
  __device__ __forceinline__ uint32_t next(int64_t k) {
    if (k % 8 == 0) block_ = stream_.block(static_cast<uint32_t>(k / 8 * W + tile_.lane));
    const int from = tile_.lane / 8 + static_cast<int>(k % 8) * (W / 8);
    const int word = (tile_.lane & 7) >> 1;
    const uint32_t w0 = tile_.shuffle(block_.w[0], from), w1 = tile_.shuffle(block_.w[1], from);
    const uint32_t w2 = tile_.shuffle(block_.w[2], from), w3 = tile_.shuffle(block_.w[3], from);
    const uint32_t w = word < 2 ? (word == 0 ? w0 : w1) : (word == 2 ? w2 : w3);
    return (w >> ((tile_.lane & 1) * 16)) & 0xFFFFu;
  }

 private:
  const Tile<W>& tile_;
  RowStream stream_;
  Philox4 block_{};
};

// Calls visit(k, c) for every lane, also where column c = lane + W * k lies beyond the row, as the
// collectives want it. K: at most so many, unrolled so that arrays of K stay in registers; 0: any.
template <int W, int K, class Visit>
__device__ __forceinline__ void each_column(const Tile<W>& tile, int64_t dim, Visit visit) {
  if constexpr (K > 0) {
    MPE_UNROLL
    for (int k = 0; k < K; ++k) {
      if (W * k < dim) visit(k, tile.lane + W * k);
    }
  } else {
    for (int64_t k = 0; W * k < dim; ++k) visit(k, tile.lane + W * k);
  }
}

// The codes of a byte come together in the lane of its first column, which writes it.
template <int W, int kPerByte>
__device__ inline void store_codes(const Tile<W>& tile, uint32_t code, int64_t c, int64_t dim,
                                   uint8_t* row) {
  constexpr int kBits = 8 / kPerByte;
  for (int s = 1; s < kPerByte; s *= 2) {
    code |= __shfl_down_sync(tile.mask, code, s, W) << (kBits * s);
  }
  if (c < dim && tile.lane % kPerByte == 0) row[c / kPerByte] = static_cast<uint8_t>(code);
}

// Row writers, one a family of formats. at(k): the value of column lane + W * k, for columns of the
// row. Values are storable. K as for each_column.
template <class F>
struct RowWriter;

template <class F>
struct PlainWriter {
  using Stored = typename F::Stored;
  using Convert = typename F::Convert;

  template <int W, int K, bool kStochastic, class At>
  static __device__ __forceinline__ void write(const Tile<W>& tile, const RowStream& stream,
                                               int64_t dim, uint8_t* row, At at) {
    Draws<W> draws(tile, stream);
    each_column<W, K>(tile, dim, [&](int64_t k, int64_t c) {
      const uint32_t r = kStochastic ? draws.next(k) : 0u;
      if (c >= dim) return;
      store_unaligned(row + c * static_cast<int64_t>(sizeof(Stored)),
                      kStochastic ? Convert::stochastic(at(k), r) : Convert::nearest(at(k)));
    });
  }
};
template <>
struct RowWriter<Fp32> : PlainWriter<Fp32> {};
template <>
struct RowWriter<Fp16> : PlainWriter<Fp16> {};
template <>
struct RowWriter<Bf16> : PlainWriter<Bf16> {};

template <class F>
struct RowWriter {
  template <int W, int K, bool kStochastic, class At>
  static __device__ __forceinline__ void write(const Tile<W>& tile, const RowStream& stream,
                                               int64_t dim, uint8_t* row, At at) {
    float mn = INFINITY, mx = -INFINITY;
    each_column<W, K>(tile, dim, [&](int64_t k, int64_t c) {
      if (c >= dim) return;
      const float x = at(k);
      mn = x < mn ? x : mn;
      mx = x > mx ? x : mx;
    });
    const AffineHeader h = F::fit(tile.min(mn), tile.max(mx));
    if (tile.lane == 0) F::store_header(row, dim, h);
    const float inv = h.scale == 0.0f ? 0.0f : 1.0f / h.scale;
    Draws<W> draws(tile, stream);
    each_column<W, K>(tile, dim, [&](int64_t k, int64_t c) {
      const uint32_t r = kStochastic ? draws.next(k) : 0u;
      uint32_t code = 0;
      if (c < dim && h.scale != 0.0f) {
        code = kStochastic ? affine_stochastic(at(k), h, inv, F::kLevels, r)
                           : affine_nearest(at(k), h, inv, F::kLevels);
      }
      store_codes<W, F::kPerByte>(tile, code, c, dim, row);
    });
  }
};

// Encodes a row by the tile.
template <class F, int K = 0, int W, class At>
__device__ __forceinline__ void write_row(const Tile<W>& tile, const Rounding& rounding,
                                          RngDomain domain, const mpe_table& table, int64_t number,
                                          int64_t dim, uint8_t* row, At at) {
  const RowStream stream = rounding.stream(domain, table, number);
  if (!F::kExact && rounding.stochastic()) {
    RowWriter<F>::template write<W, K, true>(tile, stream, dim, row, at);
  } else {
    RowWriter<F>::template write<W, K, false>(tile, stream, dim, row, at);
  }
}

// A column of a stored row: made once a row, then called with columns.
template <class F>
class RowReader {
 public:
  __device__ RowReader(const uint8_t* row, int64_t dim) : row_(row), header_(F::header(row, dim)) {}
  __device__ float operator()(int64_t c) const { return F::value(row_, header_, c); }

 private:
  const uint8_t* row_;
  typename F::RowHeader header_;
};

}  // namespace cuda
}  // namespace mpembed
