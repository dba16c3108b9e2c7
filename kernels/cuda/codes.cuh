// Encodes a lane's chunk of a row in an integer format: every code by one product, and those that a
// draw brings near to another code (affine.h) once more, by their definition.
#pragma once

#include "cuda/chunk.cuh"

namespace mpembed {
namespace cuda {

// x[j], by selection: an index at run time would move the array from registers to memory.
template <class T, int kCount>
__device__ __forceinline__ T pick(const T (&x)[kCount], uint32_t j) {
  T found = x[0];
  MPE_UNROLL
  for (uint32_t i = 1; i < kCount; ++i) found = j == i ? x[i] : found;
  return found;
}

// A row's header and what its codes are computed with. low, high: the row's range.
template <class Format>
class RowCodes {
 public:
  __device__ __forceinline__ RowCodes(AffineHeader header, float low, float high)
      : header_(header),
        inverse_(header.scale == 0.0f ? 0.0f : 1.0f / header.scale),
        quick_(affine_is_quick(low, high, larger(header.scale, -header.scale),
                               bits_float(Format::kRangeBits))) {}

  // x: a chunk, of which `columns` lie within the row. words: zero. In a row that is not quick, all
  // codes come from their definition.
  //
  // A loop, not a branch per column: a warp has a near code in one chunk of nine, and the division
  // stands here once.
  template <bool kStochastic>
  __device__ __forceinline__ void encode(const float (&x)[kChunk], int32_t columns,
                                         const Philox4& draws, uint32_t* words) const {
    const float inverse = quick_ ? inverse_ : 0.0f;
    uint32_t anew = quick_ ? 0 : first_columns(columns);
    MPE_UNROLL
    for (int j = 0; j < kChunk; ++j) {
      const int32_t draw = kStochastic ? static_cast<int32_t>(draw16(draws, j)) : kQuickNearest;
      const int32_t sum = affine_quick(x[j], header_.bias, inverse) + draw;
      anew |= affine_is_near(sum) ? 1u << j : 0;
      put_bits<kBits>(words, j, static_cast<uint32_t>(sum >> 16) & kLevels);
    }
    MPE_NO_UNROLL
    for (; anew != 0; anew &= anew - 1) {
      const uint32_t j = static_cast<uint32_t>(__ffs(static_cast<int>(anew))) - 1;
      const uint32_t draw = pick(draws.w, j / 2) >> (j % 2 * 16) & 0xFFFFu;
      const float value = pick(x, j);
      const int32_t code = kStochastic ? affine_stochastic(value, header_, inverse_, kLevels, draw)
                                       : affine_nearest(value, header_, inverse_, kLevels);
      replace_bits(words, j, static_cast<uint32_t>(code));
    }
  }

 private:
  static constexpr int kBits = Format::kBitsPerCode;
  static constexpr int32_t kLevels = Format::kLevels;
  static constexpr int kWords = Chunk<Format, kChunk>::kWords;
  static_assert(kWords <= 2, "a chunk's codes fit into 64 bits");

  static __device__ __forceinline__ uint32_t first_columns(int32_t columns) {
    return kModel || columns >= kChunk ? (1u << kChunk) - 1 : (1u << columns) - 1;
  }

  static __device__ __forceinline__ void replace_bits(uint32_t* words, uint32_t j, uint32_t code) {
    using Bits = std::conditional_t<kWords == 1, uint32_t, uint64_t>;
    Bits bits = words[0];
    if constexpr (kWords == 2) bits |= static_cast<Bits>(words[1]) << 32;
    bits &= ~(static_cast<Bits>(kLevels) << (j * kBits));
    bits |= static_cast<Bits>(code) << (j * kBits);
    words[0] = static_cast<uint32_t>(bits);
    if constexpr (kWords == 2) words[1] = static_cast<uint32_t>(bits >> 32);
  }

  const AffineHeader header_;
  const float inverse_;
  const bool quick_;
};

}  // namespace cuda
}  // namespace mpembed
