// Eight neighbouring columns of a row, loaded at once: how the forward reads.
#pragma once

#include "cuda/group.cuh"

namespace mpembed {
namespace cuda {

constexpr int kChunk = 8;

// A chunk's stored bits, in up to eight words that the caller owns.
template <class F>
struct Chunk {
  static constexpr int kBits = F::kBitsPerCode;
  static constexpr int kBytes = kChunk * kBits / 8;
  static constexpr int kWords = kBytes < 4 ? 1 : kBytes / 4;

  // c a multiple of 8. With kAligned the row has whole chunks and lies at a multiple of its
  // format's alignment; otherwise what lies beyond the codes reads as zero bits.
  template <bool kAligned>
  static __device__ __forceinline__ void load(const uint8_t* row, int64_t dim, int64_t c,
                                              uint32_t* words) {
    const uint8_t* p = row + c / kChunk * kBytes;
    if constexpr (!kAligned) {
      const int64_t end = F::code_bytes(dim) - c / kChunk * kBytes;
      for (int w = 0; w < kWords; ++w) words[w] = 0;
      for (int b = 0; b < kBytes; ++b) {
        if (b < end) words[b / 4] |= static_cast<uint32_t>(p[b]) << (b % 4 * 8);
      }
    } else if constexpr (kBytes == 2) {
      words[0] = *reinterpret_cast<const uint16_t*>(p);
    } else if constexpr (kBytes == 4) {
      words[0] = *reinterpret_cast<const uint32_t*>(p);
    } else if constexpr (kBytes == 8 && F::kHeaderBytes % 8 == 0) {
      const uint2 v = *reinterpret_cast<const uint2*>(p);
      words[0] = v.x;
      words[1] = v.y;
    } else if constexpr (kBytes == 8) {
      words[0] = reinterpret_cast<const uint32_t*>(p)[0];
      words[1] = reinterpret_cast<const uint32_t*>(p)[1];
    } else {
      for (int w = 0; w < kWords; w += 4) {
        const uint4 v = reinterpret_cast<const uint4*>(p)[w / 4];
        words[w] = v.x;
        words[w + 1] = v.y;
        words[w + 2] = v.z;
        words[w + 3] = v.w;
      }
    }
  }

  static __device__ __forceinline__ float value(const uint32_t* words, typename F::RowHeader header,
                                                int j) {
    return decode(words[j * kBits / 32] >> (j * kBits % 32), header);
  }

 private:
  static __device__ __forceinline__ float decode(uint32_t bits, AffineHeader h) {
    return affine_value(bits & ((1u << kBits) - 1u), h);
  }
  static __device__ __forceinline__ float decode(uint32_t bits, NoHeader) {
    using Stored = typename F::Stored;
    if constexpr (sizeof(Stored) == 4) return F::Convert::widen(bits_float(bits));
    if constexpr (sizeof(Stored) == 2) return F::Convert::widen(static_cast<uint16_t>(bits));
  }
};

// Whether the rows of a group can be read in aligned chunks.
inline bool aligned_chunks(const mpe_group& g) {
  bool aligned = g.dim % kChunk == 0;
  for (int32_t t = 0; t < g.num_tables; ++t) {
    aligned = aligned && reinterpret_cast<uintptr_t>(g.tables[t].rows) % 16 == 0;
  }
  return aligned && (g.cache == nullptr || reinterpret_cast<uintptr_t>(g.cache->rows) % 16 == 0);
}

}  // namespace cuda
}  // namespace mpembed
