// Eight neighbouring columns of a row, loaded at once: how the forward reads.
#pragma once

#include "cuda/group.cuh"

namespace mpembed {
namespace cuda {

constexpr int kChunk = 8;

// The stored bits of a chunk, and the row's header.
template <class F>
class Chunk {
 public:
  // c a multiple of 8. With kAligned the row has whole chunks and lies at a multiple of its
  // format's alignment; otherwise columns from dim on read as column 0 of the chunk.
  template <bool kAligned>
  __device__ void load(const uint8_t* row, int64_t dim, int64_t c) {
    header_ = F::header(row, dim);
    const uint8_t* p = row + c / kChunk * kBytes;
    if (kAligned) {
      load_words(p);
    } else {
      const int64_t end = F::code_bytes(dim) - c / kChunk * kBytes;
      for (int w = 0; w < kWords; ++w) words_[w] = 0;
      for (int b = 0; b < kBytes; ++b) {
        if (b < end) words_[b / 4] |= static_cast<uint32_t>(p[b]) << (b % 4 * 8);
      }
    }
  }

  __device__ float value(int j) const {
    const uint32_t bits = words_[j * kBits / 32] >> (j * kBits % 32);
    return decode(bits, header_);
  }

 private:
  static constexpr int kBits = F::kBitsPerCode;
  static constexpr int kBytes = kChunk * kBits / 8;
  static constexpr int kWords = kBytes < 4 ? 1 : kBytes / 4;

  __device__ void load_words(const uint8_t* p) {
    if constexpr (kBytes == 2) {
      words_[0] = *reinterpret_cast<const uint16_t*>(p);
    } else if constexpr (kBytes == 4) {
      words_[0] = *reinterpret_cast<const uint32_t*>(p);
    } else if constexpr (kBytes == 8 && F::kHeaderBytes % 8 == 0) {
      store(*reinterpret_cast<const uint2*>(p), 0);
    } else if constexpr (kBytes == 8) {
      words_[0] = reinterpret_cast<const uint32_t*>(p)[0];
      words_[1] = reinterpret_cast<const uint32_t*>(p)[1];
    } else {
      for (int w = 0; w < kWords; w += 4) store(reinterpret_cast<const uint4*>(p)[w / 4], w);
    }
  }
  __device__ void store(uint2 v, int w) {
    words_[w] = v.x;
    words_[w + 1] = v.y;
  }
  __device__ void store(uint4 v, int w) {
    words_[w] = v.x;
    words_[w + 1] = v.y;
    words_[w + 2] = v.z;
    words_[w + 3] = v.w;
  }
  static __device__ float decode(uint32_t bits, AffineHeader h) {
    return affine_value(bits & ((1u << kBits) - 1u), h);
  }
  static __device__ float decode(uint32_t bits, NoHeader) {
    using Stored = typename F::Stored;
    if constexpr (sizeof(Stored) == 4) return F::Convert::widen(bits_float(bits));
    if constexpr (sizeof(Stored) == 2) return F::Convert::widen(static_cast<uint16_t>(bits));
  }

  uint32_t words_[kWords];
  typename F::RowHeader header_;
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
