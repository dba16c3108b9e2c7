// Eight neighbouring columns of a row: what a lane loads, computes and stores at once. They share a
// Philox block and, in an aligned row, one or two wide accesses.
#pragma once

#include "cuda/group.cuh"

namespace mpembed {
namespace cuda {

// A piece of kSize bytes at a multiple of kSize, as words of four bytes; a smaller one takes a
// word.
template <int kSize>
__device__ __forceinline__ void load_piece(const uint8_t* from, uint32_t* words) {
  if constexpr (kSize == 16) {
    const uint4 v = *reinterpret_cast<const uint4*>(from);
    words[0] = v.x, words[1] = v.y, words[2] = v.z, words[3] = v.w;
  } else if constexpr (kSize == 8) {
    const uint2 v = *reinterpret_cast<const uint2*>(from);
    words[0] = v.x, words[1] = v.y;
  } else if constexpr (kSize == 4) {
    words[0] = *reinterpret_cast<const uint32_t*>(from);
  } else if constexpr (kSize == 2) {
    words[0] = *reinterpret_cast<const uint16_t*>(from);
  } else {
    words[0] = *from;
  }
}

template <int kSize>
__device__ __forceinline__ void store_piece(uint8_t* to, const uint32_t* words) {
  if constexpr (kSize == 16) {
    *reinterpret_cast<uint4*>(to) = make_uint4(words[0], words[1], words[2], words[3]);
  } else if constexpr (kSize == 8) {
    *reinterpret_cast<uint2*>(to) = make_uint2(words[0], words[1]);
  } else if constexpr (kSize == 4) {
    *reinterpret_cast<uint32_t*>(to) = words[0];
  } else if constexpr (kSize == 2) {
    *reinterpret_cast<uint16_t*>(to) = static_cast<uint16_t>(words[0]);
  } else {
    *to = static_cast<uint8_t>(words[0]);
  }
}

// kBytes of a row in pieces. Pieces smaller than a word stay apart until they are needed, so that
// no load waits for another.
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

// The bits of column j of a chunk, and bits above them; a code may go on in the next word.
template <int kBits>
__device__ __forceinline__ uint32_t get_bits(const uint32_t* words, int j) {
  const int word = j * kBits / 32, shift = j * kBits % 32;
  uint32_t bits = words[word] >> shift;
  if constexpr (32 % kBits != 0) {
    if (shift + kBits > 32) bits |= words[word + 1] << (32 - shift);
  }
  return bits;
}
// Puts the bits of column j in place, where all bits are zero.
template <int kBits>
__device__ __forceinline__ void put_bits(uint32_t* words, int j, uint32_t bits) {
  const int word = j * kBits / 32, shift = j * kBits % 32;
  words[word] |= bits << shift;
  if constexpr (32 % kBits != 0) {
    if (shift + kBits > 32) words[word + 1] |= bits >> (32 - shift);
  }
}

// A format's rows in chunks. kAlignment, in columns, divides D: rows begin at multiples of
// piece_alignment(kAlignment). 1 means that nothing is known.
template <class Format, int kAlignment>
struct Chunk {
  using Header = typename Format::RowHeader;
  static constexpr int kBits = Format::kBitsPerCode;
  static constexpr int kBytes = kChunk * kBits / 8;
  static constexpr int kWords = (kBytes + 3) / 4;
  static constexpr int kHeaderBytes = static_cast<int>(Format::kHeaderBytes);
  static constexpr int kHeaderWords = kHeaderBytes / 4;
  static constexpr bool kPlain = std::is_same<typename Format::Family, PlainFamily>::value;
  // Bytes that may be loaded at once. Unaligned plain rows are loaded element by element, or byte
  // by byte if the elements themselves are not aligned.
  static constexpr int kAligned = piece_alignment<Format>(kAlignment);
  static constexpr int kPiece = kAlignment > 1 ? min_of(kAligned, kBytes) : kPlain ? kBits / 8 : 1;
  static constexpr int kHeaderPiece = kAlignment > 1 ? min_of(kAligned, 8) : 1;
  using Codes = Pieces<kBytes, kPiece>;
  using HeaderCodes = Pieces<kHeaderBytes, kHeaderPiece>;
  static constexpr int kRaw = Codes::kRaw, kRawHeader = HeaderCodes::kRaw;

  // Where column c of a row begins, a multiple of 8.
  static __device__ __forceinline__ int32_t offset(int32_t c) { return c / 8 * kBits; }

  // codes: of a chunk; columns: those from there to the end of the row. Bits beyond the codes read
  // as zero. Pass `raw` to join(), then to value().
  static __device__ __forceinline__ void load(const uint8_t* codes, int32_t columns,
                                              uint32_t* raw) {
    const bool aligned = is_aligned(codes);
    MPE_UNROLL
    for (int i = 0; i < Codes::kCount; ++i) {
      uint32_t* w = raw + i * Codes::kEach;
      if (!within(columns, i)) {
        for (int j = 0; j < Codes::kEach; ++j) w[j] = 0;
      } else if (aligned) {
        load_piece<kPiece>(codes + i * kPiece, w);
      } else {
        w[0] = 0;
        for (int b = 0; b < kPiece; ++b)
          w[0] |= static_cast<uint32_t>(codes[i * kPiece + b]) << (8 * b);
      }
    }
  }
  static __device__ __forceinline__ void store(uint8_t* codes, int32_t columns,
                                               const uint32_t* words) {
    const bool aligned = is_aligned(codes);
    uint32_t raw[kRaw];
    Codes::cut(words, raw);
    MPE_UNROLL
    for (int i = 0; i < Codes::kCount; ++i) {
      const uint32_t* w = raw + i * Codes::kEach;
      if (!within(columns, i)) continue;
      if (aligned) {
        store_piece<kPiece>(codes + i * kPiece, w);
      } else {
        for (int b = 0; b < kPiece; ++b)
          codes[i * kPiece + b] = static_cast<uint8_t>(w[0] >> (8 * b));
      }
    }
  }
  static __device__ __forceinline__ void join(const uint32_t* raw, uint32_t* words) {
    Codes::join(raw, words);
  }

  // from: the header's address.
  static __device__ __forceinline__ void load_header(const uint8_t* from, uint32_t* raw) {
    MPE_UNROLL
    for (int i = 0; i < HeaderCodes::kCount; ++i) {
      load_piece<kHeaderPiece>(from + i * kHeaderPiece, raw + i * HeaderCodes::kEach);
    }
  }
  static __device__ __forceinline__ void load_header_words(const uint8_t* from, uint32_t* words) {
    uint32_t raw[kRawHeader + 1];
    load_header(from, raw);
    HeaderCodes::join(raw, words);
  }
  // A header's words to and from its values; the format's own functions define the layout.
  static __device__ __forceinline__ Header header(const uint32_t* raw) {
    alignas(8) uint32_t words[kHeaderWords + 1] = {};
    HeaderCodes::join(raw, words);
    return Format::header(reinterpret_cast<const uint8_t*>(words), 0);
  }
  static __device__ __forceinline__ void store_header(uint8_t* to, Header header) {
    alignas(8) uint32_t words[kHeaderWords + 1] = {};
    Format::store_header(reinterpret_cast<uint8_t*>(words), 0, header);
    uint32_t raw[kRawHeader + 1];
    HeaderCodes::cut(words, raw);
    MPE_UNROLL
    for (int i = 0; i < HeaderCodes::kCount; ++i) {
      store_piece<kHeaderPiece>(to + i * kHeaderPiece, raw + i * HeaderCodes::kEach);
    }
  }

  static __device__ __forceinline__ float value(const uint32_t* words, Header header, int j) {
    return decode(get_bits<kBits>(words, j), header);
  }

 private:
  // Whether piece i of the chunk lies within the row.
  static __device__ __forceinline__ bool within(int32_t columns, int i) {
    return kAlignment == kChunk || i * kPiece * 8 / kBits < columns;
  }
  static __device__ __forceinline__ bool is_aligned(const uint8_t* codes) {
    return kModel || kAlignment > 1 || kPiece == 1 ||
           reinterpret_cast<uintptr_t>(codes) % kPiece == 0;
  }
  static __device__ __forceinline__ float decode(uint32_t bits, AffineHeader header) {
    return affine_value(bits & ((1u << kBits) - 1u), header);
  }
  static __device__ __forceinline__ float decode(uint32_t bits, NoHeader) {
    using Stored = typename Format::Stored;
    if constexpr (sizeof(Stored) == 4) return Format::Convert::widen(bits_float(bits));
    if constexpr (sizeof(Stored) == 2) return Format::Convert::widen(static_cast<uint16_t>(bits));
  }
};

// Calls visit with the alignment as an integral constant; the branch is the same for a whole
// launch.
template <class Visit>
__device__ __forceinline__ void with_alignment(int32_t alignment, Visit visit) {
  if (kModel || alignment == kChunk) {
    visit(std::integral_constant<int, kChunk>{});
  } else if (alignment == kHalfChunk) {
    visit(std::integral_constant<int, kHalfChunk>{});
  } else {
    visit(std::integral_constant<int, 1>{});
  }
}

__device__ __forceinline__ bool wide(const void* address, int32_t columns) {
  return kModel || (columns >= kChunk && reinterpret_cast<uintptr_t>(address) % 16 == 0);
}

// Loads the first `columns` of eight FP32 values; the others are zero.
__device__ __forceinline__ void load_floats(const float* from, int32_t columns, float* x) {
  if (wide(from, columns)) {
    const float4 a = reinterpret_cast<const float4*>(from)[0];
    const float4 b = reinterpret_cast<const float4*>(from)[1];
    x[0] = a.x, x[1] = a.y, x[2] = a.z, x[3] = a.w;
    x[4] = b.x, x[5] = b.y, x[6] = b.z, x[7] = b.w;
    return;
  }
  MPE_UNROLL
  for (int j = 0; j < kChunk; ++j) x[j] = j < columns ? from[j] : 0.0f;
}

__device__ __forceinline__ void store_floats(float* to, int32_t columns, const float* x) {
  if (wide(to, columns)) {
    reinterpret_cast<float4*>(to)[0] = make_float4(x[0], x[1], x[2], x[3]);
    reinterpret_cast<float4*>(to)[1] = make_float4(x[4], x[5], x[6], x[7]);
    return;
  }
  MPE_UNROLL
  for (int j = 0; j < kChunk; ++j) {
    if (j < columns) to[j] = x[j];
  }
}

}  // namespace cuda
}  // namespace mpembed
