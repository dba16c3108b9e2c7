// Eight neighbouring columns of a row: what a lane loads, computes and stores at once. They share a
// Philox block and, where the row is aligned, one or two wide accesses.
#pragma once

#include "cuda/group.cuh"

namespace mpembed {
namespace cuda {

// A power of two that divides n, 16 at most.
constexpr MPE_HD int alignment_of(int64_t n) {
  return n % 16 == 0 ? 16 : n % 8 == 0 ? 8 : n % 4 == 0 ? 4 : n % 2 == 0 ? 2 : 1;
}

constexpr MPE_HD int min_of(int a, int b) { return a < b ? a : b; }
constexpr MPE_HD int max_of(int a, int b) { return a > b ? a : b; }

// A piece of a row, p a multiple of kSize: words of four bytes, or one word for fewer.
template <int kSize>
__device__ __forceinline__ void load_piece(const uint8_t* p, uint32_t* w) {
  if constexpr (kSize == 16) {
    const uint4 v = *reinterpret_cast<const uint4*>(p);
    w[0] = v.x, w[1] = v.y, w[2] = v.z, w[3] = v.w;
  } else if constexpr (kSize == 8) {
    const uint2 v = *reinterpret_cast<const uint2*>(p);
    w[0] = v.x, w[1] = v.y;
  } else if constexpr (kSize == 4) {
    w[0] = *reinterpret_cast<const uint32_t*>(p);
  } else if constexpr (kSize == 2) {
    w[0] = *reinterpret_cast<const uint16_t*>(p);
  } else {
    w[0] = *p;
  }
}

template <int kSize>
__device__ __forceinline__ void store_piece(uint8_t* p, const uint32_t* w) {
  if constexpr (kSize == 16) {
    *reinterpret_cast<uint4*>(p) = make_uint4(w[0], w[1], w[2], w[3]);
  } else if constexpr (kSize == 8) {
    *reinterpret_cast<uint2*>(p) = make_uint2(w[0], w[1]);
  } else if constexpr (kSize == 4) {
    *reinterpret_cast<uint32_t*>(p) = w[0];
  } else if constexpr (kSize == 2) {
    *reinterpret_cast<uint16_t*>(p) = static_cast<uint16_t>(w[0]);
  } else {
    *p = static_cast<uint8_t>(w[0]);
  }
}

// kBytes of a row in pieces. Pieces of less than a word stay apart until they are needed, so that
// no load waits for the one before.
template <int kBytes, int kPiece>
struct Pieces {
  static constexpr int kCount = kBytes / kPiece;
  static constexpr int kEach = kPiece < 4 ? 1 : kPiece / 4;  // words
  static constexpr int kRaw = kCount * kEach;

  static __device__ __forceinline__ void join(const uint32_t* raw, uint32_t* words) {
    MPE_UNROLL
    for (int w = 0; w < (kBytes + 3) / 4; ++w) words[w] = kPiece < 4 ? 0 : raw[w];
    MPE_UNROLL
    for (int i = 0; kPiece < 4 && i < kCount; ++i) {
      words[i * kPiece / 4] |= raw[i] << (i * kPiece % 4 * 8);
    }
  }
  static __device__ __forceinline__ void cut(const uint32_t* words, uint32_t* raw) {
    MPE_UNROLL
    for (int i = 0; i < kRaw; ++i) {
      raw[i] = kPiece < 4 ? words[i * kPiece / 4] >> (i * kPiece % 4 * 8) : words[i];
    }
  }
};

// A format's rows in chunks. kGrain, which divides D, says how they are aligned: as a row of so
// many columns is, after a base at a multiple of 16; or not at all where it is 1.
template <class F, int kGrain>
struct Chunk {
  using Header = typename F::RowHeader;
  static constexpr int kBits = F::kBitsPerCode;
  static constexpr int kBytes = kChunk * kBits / 8;
  static constexpr int kWords = (kBytes + 3) / 4;
  static constexpr int kHeaderBytes = static_cast<int>(F::kHeaderBytes);
  static constexpr int kHeaderWords = kHeaderBytes / 4;
  static constexpr bool kPlain = kHeaderBytes == 0;
  // What may be loaded at once. Plain rows that are not aligned have whole elements, if need be
  // byte by byte.
  static constexpr int kAligned =
      min_of(alignment_of(kGrain * kBits / 8), alignment_of(kHeaderBytes));
  static constexpr int kPiece = kGrain > 1 ? min_of(kAligned, kBytes) : kPlain ? kBits / 8 : 1;
  static constexpr int kHeaderPiece = kGrain > 1 ? min_of(kAligned, 8) : 1;
  using Codes = Pieces<kBytes, kPiece>;
  using HeaderCodes = Pieces<kHeaderBytes, kHeaderPiece>;
  static constexpr int kRaw = Codes::kRaw, kRawHeader = HeaderCodes::kRaw;

  // c a multiple of 8 within the row; what lies beyond the codes reads as zero bits. `raw` is for
  // value() after join().
  static __device__ __forceinline__ void load(const uint8_t* row, int32_t dim, int32_t c,
                                              uint32_t* raw) {
    const uint8_t* p = row + c / 8 * kBits;
    const bool aligned = is_aligned(row);
    MPE_UNROLL
    for (int i = 0; i < Codes::kCount; ++i) {
      uint32_t* w = raw + i * Codes::kEach;
      if (!within(dim, c, i)) {
        for (int j = 0; j < Codes::kEach; ++j) w[j] = 0;
      } else if (aligned) {
        load_piece<kPiece>(p + i * kPiece, w);
      } else {
        w[0] = 0;
        for (int b = 0; b < kPiece; ++b)
          w[0] |= static_cast<uint32_t>(p[i * kPiece + b]) << (8 * b);
      }
    }
  }
  static __device__ __forceinline__ void store(uint8_t* row, int32_t dim, int32_t c,
                                               const uint32_t* words) {
    uint8_t* p = row + c / 8 * kBits;
    const bool aligned = is_aligned(row);
    uint32_t raw[kRaw];
    Codes::cut(words, raw);
    MPE_UNROLL
    for (int i = 0; i < Codes::kCount; ++i) {
      const uint32_t* w = raw + i * Codes::kEach;
      if (!within(dim, c, i)) continue;
      if (aligned) {
        store_piece<kPiece>(p + i * kPiece, w);
      } else {
        for (int b = 0; b < kPiece; ++b) p[i * kPiece + b] = static_cast<uint8_t>(w[0] >> (8 * b));
      }
    }
  }
  static __device__ __forceinline__ void join(const uint32_t* raw, uint32_t* words) {
    Codes::join(raw, words);
  }

  static __device__ __forceinline__ void load_header(const uint8_t* row, int32_t dim,
                                                     uint32_t* raw) {
    const uint8_t* p = row + F::code_bytes(dim);
    MPE_UNROLL
    for (int i = 0; i < HeaderCodes::kCount; ++i) {
      load_piece<kHeaderPiece>(p + i * kHeaderPiece, raw + i * HeaderCodes::kEach);
    }
  }
  // Headers between their words and their values, as the format's own functions lay them out.
  static __device__ __forceinline__ Header header(const uint32_t* raw) {
    alignas(8) uint32_t words[kHeaderWords + 1] = {};
    HeaderCodes::join(raw, words);
    return F::header(reinterpret_cast<const uint8_t*>(words), 0);
  }
  static __device__ __forceinline__ void store_header(uint8_t* row, int32_t dim, Header header) {
    alignas(8) uint32_t words[kHeaderWords + 1] = {};
    F::store_header(reinterpret_cast<uint8_t*>(words), 0, header);
    uint32_t raw[kRawHeader + 1];
    HeaderCodes::cut(words, raw);
    uint8_t* p = row + F::code_bytes(dim);
    MPE_UNROLL
    for (int i = 0; i < HeaderCodes::kCount; ++i) {
      store_piece<kHeaderPiece>(p + i * kHeaderPiece, raw + i * HeaderCodes::kEach);
    }
  }

  static __device__ __forceinline__ float value(const uint32_t* words, Header header, int j) {
    return decode(words[j * kBits / 32] >> (j * kBits % 32), header);
  }

 private:
  // Whether piece i holds columns of the row.
  static __device__ __forceinline__ bool within(int32_t dim, int32_t c, int i) {
    return kGrain == kChunk || c + i * kPiece * 8 / kBits < dim;
  }
  static __device__ __forceinline__ bool is_aligned(const uint8_t* row) {
    return kGrain > 1 || kPiece == 1 || reinterpret_cast<uintptr_t>(row) % kPiece == 0;
  }
  static __device__ __forceinline__ float decode(uint32_t bits, AffineHeader h) {
    return affine_value(bits & ((1u << kBits) - 1u), h);
  }
  static __device__ __forceinline__ float decode(uint32_t bits, NoHeader) {
    using Stored = typename F::Stored;
    if constexpr (sizeof(Stored) == 4) return F::Convert::widen(bits_float(bits));
    if constexpr (sizeof(Stored) == 2) return F::Convert::widen(static_cast<uint16_t>(bits));
  }
};

// Calls f with an integral constant: the grain as a type, one branch for all of a launch.
template <class Visit>
__device__ __forceinline__ void with_grain(int32_t grain, Visit visit) {
  if (kModel || grain == kChunk) {
    visit(std::integral_constant<int, kChunk>{});
  } else if (grain == kHalfChunk) {
    visit(std::integral_constant<int, kHalfChunk>{});
  } else {
    visit(std::integral_constant<int, 1>{});
  }
}

__device__ __forceinline__ bool wide(const void* p, int32_t columns) {
  return kModel || (columns >= kChunk && reinterpret_cast<uintptr_t>(p) % 16 == 0);
}

// `columns` of eight FP32 values; zero beyond.
__device__ __forceinline__ void load_floats(const float* p, int32_t columns, float* x) {
  if (wide(p, columns)) {
    const float4 a = reinterpret_cast<const float4*>(p)[0];
    const float4 b = reinterpret_cast<const float4*>(p)[1];
    x[0] = a.x, x[1] = a.y, x[2] = a.z, x[3] = a.w;
    x[4] = b.x, x[5] = b.y, x[6] = b.z, x[7] = b.w;
    return;
  }
  MPE_UNROLL
  for (int j = 0; j < kChunk; ++j) x[j] = j < columns ? p[j] : 0.0f;
}

__device__ __forceinline__ void store_floats(float* p, int32_t columns, const float* x) {
  if (wide(p, columns)) {
    reinterpret_cast<float4*>(p)[0] = make_float4(x[0], x[1], x[2], x[3]);
    reinterpret_cast<float4*>(p)[1] = make_float4(x[4], x[5], x[6], x[7]);
    return;
  }
  MPE_UNROLL
  for (int j = 0; j < kChunk; ++j) {
    if (j < columns) p[j] = x[j];
  }
}

}  // namespace cuda
}  // namespace mpembed
