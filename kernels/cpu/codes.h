// Encodes the columns of one row of an integer format, a vector of them at a time.
#pragma once

#include "cpu/common.h"
#include "cpu/lanes.h"

MPE_BEGIN

constexpr int64_t kCodeBlock = 16;  // columns that are encoded at a time

// The smallest and the largest value of a row.
inline void range_of(const float* x, int64_t dim, float* low, float* high) {
  const auto min = [](auto a, auto b) { return smaller(a, b); };
  const auto max = [](auto a, auto b) { return larger(a, b); };
  int64_t c = 0;
  *low = *high = x[0];
  if (dim >= kLanes) {
    Floats lows = Floats::load(x), highs = lows;
    for (c = kLanes; c + kLanes <= dim; c += kLanes) {
      const Floats values = Floats::load(x + c);
      lows = min(values, lows);
      highs = max(values, highs);
    }
    *low = fold(lows, min);
    *high = fold(highs, max);
  }
  for (; c < dim; ++c) {
    *low = min(x[c], *low);
    *high = max(x[c], *high);
  }
}

typedef uint8_t CodeBytes __attribute__((vector_size(16)));

// Joins the halves of every element, in each of which the low kBits are used.
template <int kBits, class Vector>
inline Vector join_halves(Vector x) {
  using Element = std::remove_reference_t<decltype(x[0])>;
  constexpr int kHalf = static_cast<int>(sizeof(Element)) * 4;
  constexpr Element kLow = static_cast<Element>((uint64_t{1} << kBits) - 1);
  const Vector low = Vector{} + kLow;
  return (x & low) | ((x >> (kHalf - kBits)) & ~low);
}

// store_codes for codes that go from one byte into the next.
template <int kBits>
inline void store_straddling(CodeBytes codes, uint8_t* out) {
  typedef uint16_t Pairs __attribute__((vector_size(16)));
  typedef uint32_t Fours __attribute__((vector_size(16)));
  typedef uint64_t Eights __attribute__((vector_size(16)));
  const Pairs pairs = join_halves<kBits>(reinterpret_cast<Pairs>(codes));
  const Fours fours = join_halves<2 * kBits>(reinterpret_cast<Fours>(pairs));
  const Eights eights = join_halves<4 * kBits>(reinterpret_cast<Eights>(fours));
  const uint64_t low = eights[0] | (eights[1] << (8 * kBits)), high = eights[1] >> (64 - 8 * kBits);
  if constexpr (kBits > 4) {
    memcpy(out, &low, 8);
    memcpy(out + 8, &high, 2 * kBits - 8);
  } else {
    memcpy(out, &low, 2 * kBits);
  }
}

// Packs 16 codes of kBits bits, each in a byte of `codes`, into 2 * kBits bytes.
template <int kBits>
inline void store_codes(CodeBytes codes, uint8_t* out) {
  if constexpr (kBits == 8) {
    memcpy(out, &codes, 16);
  } else if constexpr (8 % kBits != 0) {
    store_straddling<kBits>(codes, out);
  } else {
    constexpr int kPerByte = 8 / kBits;
    typedef uint16_t Pairs __attribute__((vector_size(16)));
    typedef uint8_t HalfBytes __attribute__((vector_size(8)));
    Pairs pairs = reinterpret_cast<Pairs>(codes);
    pairs = (pairs | (pairs >> (8 - 8 / kPerByte))) & 0xFF;
    const HalfBytes bytes = __builtin_convertvector(pairs, HalfBytes);
    if constexpr (kPerByte == 2) {
      memcpy(out, &bytes, 8);
    } else {
      uint64_t word;  // four bits a byte
      memcpy(&word, &bytes, 8);
      word = (word | (word >> 4)) & 0x00FF00FF00FF00FFu;
      word = (word | (word >> 8)) & 0x0000FFFF0000FFFFu;
      const uint32_t packed = static_cast<uint32_t>(word | (word >> 16));
      memcpy(out, &packed, 4);
    }
  }
}

// The codes of a row by their definition. draws: the row's; unused for nearest rounding.
template <class Format, bool kStochastic>
class ExactCodes {
 public:
  ExactCodes(AffineHeader header, const uint16_t* draws)
      : header_(header), inverse_(1.0f / header.scale), draws_(draws) {}

  Ints at(int64_t c, Floats x) {
    if constexpr (kStochastic) {
      return affine_stochastic(x, header_, inverse_, Format::kLevels, load_halves(draws_ + c));
    } else {
      return affine_nearest(x, header_, inverse_, Format::kLevels);
    }
  }

 private:
  const AffineHeader header_;
  const float inverse_;
  const uint16_t* draws_;
};

// The same in a third of the instructions, for a row that allows it (affine.h). The codes are exact
// unless one came too near to its neighbour.
template <bool kStochastic>
class QuickCodes {
 public:
  QuickCodes(AffineHeader header, const uint16_t* draws)
      : bias_(header.bias), inverse_(1.0f / header.scale), draws_(draws) {}

  Ints at(int64_t c, Floats x) {
    Ints sum = affine_quick(x, bias_, inverse_);
    if constexpr (kStochastic) {
      sum = sum + load_halves(draws_ + c);
    } else {
      sum = sum + kQuickNearest;
    }
    near_ = near_ | affine_is_near(sum);
    return sum >> 16;
  }
  bool exact() const { return !any(near_); }

 private:
  const float bias_, inverse_;
  const uint16_t* draws_;
  Ints near_ = 0;
};

// Encodes 16 columns from c on into whole bytes of `out`.
template <class Format, class Codes>
inline void encode_block(const float* x, int64_t c, Codes& codes, uint8_t* out) {
  uint8_t bytes[kCodeBlock];
  for (int i = 0; i < kCodeBlock; i += kLanes) {
    const LaneBytes narrow =
        __builtin_convertvector(codes.at(c + i, Floats::load(x + i)).v, LaneBytes);
    memcpy(bytes + i, &narrow, sizeof narrow);
  }
  CodeBytes all;
  memcpy(&all, bytes, sizeof all);
  store_codes<Format::kBitsPerCode>(all, out);
}

// Where the codes from column c on begin, a multiple of eight.
template <class Format>
inline uint8_t* codes_at(uint8_t* row, int64_t c) {
  return row + c / 8 * Format::kBitsPerCode;
}

// Encodes a row. pad: a value of code 0, for what lies beyond the row.
template <class Format, class Codes>
inline void encode_codes(const float* x, int64_t dim, float pad, Codes& codes, uint8_t* row) {
  int64_t c = 0;
  for (; c + kCodeBlock <= dim; c += kCodeBlock) {
    encode_block<Format>(x + c, c, codes, codes_at<Format>(row, c));
  }
  if (c == dim) return;
  float padded[kCodeBlock];
  uint8_t bytes[kCodeBlock];
  for (int64_t i = 0; i < kCodeBlock; ++i) padded[i] = c + i < dim ? x[c + i] : pad;
  encode_block<Format>(padded, c, codes, bytes);
  memcpy(codes_at<Format>(row, c), bytes, static_cast<size_t>(Format::code_bytes(dim - c)));
}

template <class Format, bool kStochastic>
__attribute__((noinline)) void encode_exactly(const float* x, const uint16_t* draws, int64_t dim,
                                              AffineHeader header, uint8_t* row) {
  ExactCodes<Format, kStochastic> codes(header, draws);
  encode_codes<Format>(x, dim, header.bias, codes, row);
}

// Columns that are encoded quickly together. Of such pieces one in eight has to be encoded again;
// of whole rows of thousands of columns most would.
constexpr int64_t kQuickColumns = 16 * kCodeBlock;

template <class Format, bool kStochastic>
inline void encode_affine(const float* x, const uint16_t* draws, int64_t dim, AffineHeader header,
                          bool quick, uint8_t* row) {
  if (!quick) return encode_exactly<Format, kStochastic>(x, draws, dim, header, row);
  for (int64_t c = 0; c < dim; c += kQuickColumns) {
    const int64_t n = min64(dim - c, kQuickColumns);
    const uint16_t* const piece_draws = kStochastic ? draws + c : nullptr;
    uint8_t* const out = codes_at<Format>(row, c);
    QuickCodes<kStochastic> codes(header, piece_draws);
    encode_codes<Format>(x + c, n, header.bias, codes, out);
    if (!codes.exact()) encode_exactly<Format, kStochastic>(x + c, piece_draws, n, header, out);
  }
}

MPE_END
