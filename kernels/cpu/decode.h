// Decodes rows from their tables' formats, a vector of columns at a time.
#pragma once

#include "cpu/lanes.h"
#include "mpembed/registry_types.h"

MPE_BEGIN

#if defined(__AVX2__)
constexpr bool kShiftPerLane = true;  // each lane by a count of its own
#else
constexpr bool kShiftPerLane = false;
#endif

// kLanes codes of kBits bits from column c on, a multiple of kLanes, widened to a lane each.
template <int kBits>
inline Ints load_codes(const uint8_t* row, int64_t c) {
  constexpr int kBytes = kLanes * kBits / 8;
  const uint8_t* const p = row + c * kBits / 8;
  if constexpr (kBits < 8 && kBytes <= 4 && kShiftPerLane) {
    typedef uint32_t Words __attribute__((vector_size(kLanes * 4)));
    const uint32_t word = load_unaligned<uint32_t>(p);  // within the row: a header follows
    Words shift{};
    for (int i = 0; i < kLanes; ++i) shift[i] = static_cast<uint32_t>(kBits * i);
    return Ints((Ints::Vector)(((Words{} + word) >> shift) & ((1u << kBits) - 1)));
  } else {
    LaneBytes codes;
    if constexpr (8 % kBits != 0) {  // codes that go from one byte into the next
      static_assert(kBytes < 4);
      constexpr uint32_t kOne = (1u << kBits) - 1, kTwo = (1u << (2 * kBits)) - 1;
      uint32_t bits = load_unaligned<uint32_t>(p) >> (c * kBits % 8);
      bits = (bits & kTwo) | ((bits << (16 - 2 * kBits)) & (kTwo << 16));
      bits = (bits & (kOne * 0x10001u)) | ((bits << (8 - kBits)) & (kOne * 0x1000100u));
      memcpy(&codes, &bits, kLanes);
    } else if constexpr (kBits == 8) {
      memcpy(&codes, p, kBytes);
    } else if constexpr (kBits == 4) {
      typedef uint8_t Half __attribute__((vector_size(kLanes / 2)));
      typedef uint16_t Pairs __attribute__((vector_size(kLanes)));
      Half packed;
      memcpy(&packed, p, sizeof packed);
      Pairs pairs = __builtin_convertvector(packed, Pairs);
      pairs = (pairs | (pairs << 4)) & 0x0F0F;
      memcpy(&codes, &pairs, kLanes);
    } else {
      static_assert(kBits == 2);
      typedef uint32_t Fours __attribute__((vector_size(kLanes)));
      Fours fours{};
      for (int i = 0; i < kBytes; ++i) fours[i] = p[i];
      fours = (fours | (fours << 6) | (fours << 12) | (fours << 18)) & 0x03030303u;
      memcpy(&codes, &fours, kLanes);
    }
    return widen(codes);
  }
}

// What codes of kBits bits mean under a row's header, a vector of columns at a time.
template <int kBits, bool kPicked = (8 % kBits != 0 && kLanes * kBits > 32)>
class CodeValues {
 public:
  explicit CodeValues(AffineHeader header) : header_(header) {}
  Floats load(const uint8_t* row, int64_t c) const {
    return affine_value(load_codes<kBits>(row, c), header_);
  }

 private:
  const AffineHeader header_;
};

#if defined(__AVX2__)
// Codes that go from one byte into the next. Each lane picks the two bytes around its code, which
// it leaves where it is among them, times a power of two: the scale makes up for that exactly, for
// an FP16 number divided by 2^7 is a normal float. What is read lies within the row: a header
// follows the codes.
template <int kBits>
class CodeValues<kBits, true> {
 public:
  explicit CodeValues(AffineHeader header) : bias_(header.bias) {
    Floats::Vector unit{};
    for (int i = 0; i < kLanes; ++i) {
      const int bit = kBits * i - (i < kLanes / 2 ? 0 : 8 * kSecond), last = kAtOnce ? 15 : 7;
      pick_[4 * i] = static_cast<uint8_t>(bit / 8);
      pick_[4 * i + 1] = static_cast<uint8_t>(bit / 8 < last ? bit / 8 + 1 : last);
      mask_[i] = ((1u << kBits) - 1) << (bit % 8);
      unit[i] = 1.0f / static_cast<float>(1 << (bit % 8));
    }
    scale_ = Floats(unit) * header.scale;
  }
  Floats load(const uint8_t* row, int64_t c) const {
    const uint8_t* const p = row + c / 8 * kBits;
#if defined(__AVX512F__)
    __m512i bytes;
    if constexpr (kAtOnce) {
      bytes = _mm512_maskz_broadcast_i32x4(0xFFFF, _mm_loadu_si128((const __m128i_u*)p));
    } else {
      bytes = _mm512_mask_set1_epi64(_mm512_set1_epi64(load_unaligned<int64_t>(p)), 0xF0,
                                     load_unaligned<int64_t>(p + kSecond));
    }
    const Words windows = (Words)_mm512_maskz_shuffle_epi8(~0ull, bytes, (__m512i)pick_);
#else
    const __m256i bytes = _mm256_set1_epi64x(load_unaligned<int64_t>(p));
    const Words windows = (Words)_mm256_shuffle_epi8(bytes, (__m256i)pick_);
#endif
    return fused(to_float(Ints((Ints::Vector)(windows & mask_))), scale_, bias_);
  }

 private:
  typedef uint8_t Bytes __attribute__((vector_size(kLanes * 4)));
  typedef uint32_t Words __attribute__((vector_size(kLanes * 4)));
  static constexpr int kBytes = kLanes * kBits / 8;
  static_assert(kBytes + 4 >= 8);
  // Where the bytes of the second half of the lanes are read from, if not all are read at once.
  static constexpr bool kAtOnce = kBytes + 4 >= 16;
  static constexpr int kSecond = kAtOnce || kBytes <= 8 ? 0 : kBytes - 8;
  Bytes pick_{};
  Words mask_{};
  Floats scale_;
  const Floats bias_;
};
#endif

#if defined(__AVX512F__)
// A register holds all 16 values, and one instruction picks a vector of them. It looks at only the
// four low bits of each lane of its index.
template <>
class CodeValues<4, false> {
 public:
  explicit CodeValues(AffineHeader header) {
    Ints::Vector code{};
    for (int i = 0; i < kLanes; ++i) code[i] = i;
    values_ = affine_value(Ints(code), header);
  }
  Floats load(const uint8_t* row, int64_t c) const {
    const uint8_t* const p = row + c / 2;
    typedef uint32_t Words __attribute__((vector_size(64)));
    int32_t low, high;
    memcpy(&low, p, 4);
    memcpy(&high, p + 4, 4);
    Words shift{};
    for (int i = 0; i < kLanes; ++i) shift[i] = static_cast<uint32_t>(4 * (i % 8));
    const Words codes = (Words)_mm512_mask_set1_epi32(_mm512_set1_epi32(low), 0xFF00, high);
    const auto index = (__m512i)(codes >> shift);
    return Floats((Floats::Vector)_mm512_maskz_permutexvar_ps(0xFFFF, index, values_.v));
  }

 private:
  Floats values_;
};
#endif

// The values of a row of plain numbers, which has no header to apply.
template <class Format>
class PlainValues {
 public:
  explicit PlainValues(typename Format::RowHeader) {}
  Floats load(const uint8_t* row, int64_t c) const {
    const uint8_t* const p = row + c * static_cast<int64_t>(sizeof(typename Format::Stored));
    if constexpr (Format::kBitsPerCode == 32) {
      return Format::Convert::widen(Floats::load(reinterpret_cast<const float*>(p)));
    } else {
      return Format::Convert::widen(load_halves(p));
    }
  }
};

// What reads the values of a format's rows, by its family.
template <class Format, class Family = typename Format::Family>
struct ValuesOf;
template <class Format>
struct ValuesOf<Format, PlainFamily> {
  using Type = PlainValues<Format>;
};
template <class Format>
struct ValuesOf<Format, AffineFamily> {
  using Type = CodeValues<Format::kBitsPerCode>;
};

// A stored row, whose values are read a vector of columns at a time.
template <class Format>
class StoredRow {
 public:
  StoredRow(const uint8_t* row, int64_t dim)
      : row_(row), header_(Format::header(row, dim)), values_(header_) {}

  // Columns [c, c + kLanes), c a multiple of kLanes.
  Floats load(int64_t c) const { return values_.load(row_, c); }
  // The first n of them, fewer than all; the others are zero.
  Floats load_some(int64_t c, int64_t n) const {
    float values[kLanes] = {};
    for (int64_t i = 0; i < n; ++i) values[i] = Format::value(row_, header_, c + i);
    return Floats::load(values);
  }

 private:
  const uint8_t* row_;
  const typename Format::RowHeader header_;
  const typename ValuesOf<Format>::Type values_;
};

template <class Format>
inline void decode_row(const uint8_t* row, int64_t dim, float* out) {
  const StoredRow<Format> stored(row, dim);
  int64_t c = 0;
  for (; c + kLanes <= dim; c += kLanes) stored.load(c).store(out + c);
  for (; c < dim; ++c) out[c] = Format::value(row, Format::header(row, dim), c);
}

MPE_END
