// The codes of one row of an integer format, a vector of columns at a time.
#pragma once

#include "cpu/common.h"
#include "cpu/lanes.h"

MPE_BEGIN

constexpr int64_t kCodeBlock = 16;  // columns at a time

inline void range_of(const float* x, int64_t dim, float* mn, float* mx) {
  const auto min = [](auto a, auto b) { return smaller(a, b); };
  const auto max = [](auto a, auto b) { return larger(a, b); };
  int64_t c = 0;
  *mn = *mx = x[0];
  if (dim >= kLanes) {
    Floats low = Floats::load(x), high = low;
    for (c = kLanes; c + kLanes <= dim; c += kLanes) {
      const Floats v = Floats::load(x + c);
      low = min(v, low);
      high = max(v, high);
    }
    *mn = fold(low, min);
    *mx = fold(high, max);
  }
  for (; c < dim; ++c) {
    *mn = min(x[c], *mn);
    *mx = max(x[c], *mx);
  }
}

// 16 codes of 8 / kPerByte bits, each in a byte of `codes`, packed into 16 / kPerByte bytes.
typedef uint8_t CodeBytes __attribute__((vector_size(16)));
template <int kPerByte>
inline void store_codes(CodeBytes codes, uint8_t* out) {
  if constexpr (kPerByte == 1) {
    memcpy(out, &codes, 16);
  } else {
    typedef uint16_t Pairs __attribute__((vector_size(16)));
    typedef uint8_t HalfBytes __attribute__((vector_size(8)));
    Pairs pairs = reinterpret_cast<Pairs>(codes);
    pairs = (pairs | (pairs >> (8 - 8 / kPerByte))) & 0xFF;
    const HalfBytes bytes = __builtin_convertvector(pairs, HalfBytes);
    if constexpr (kPerByte == 2) {
      memcpy(out, &bytes, 8);
    } else {
      uint64_t v;  // four bits a byte
      memcpy(&v, &bytes, 8);
      v = (v | (v >> 4)) & 0x00FF00FF00FF00FFu;
      v = (v | (v >> 8)) & 0x0000FFFF0000FFFFu;
      const uint32_t four = static_cast<uint32_t>(v | (v >> 16));
      memcpy(out, &four, 4);
    }
  }
}

// The codes of vectors of a row, by the definition. r: its draws; unused for nearest.
template <class F, bool kStochastic>
class ExactCodes {
 public:
  ExactCodes(AffineHeader h, const uint16_t* r) : h_(h), inv_(1.0f / h.scale), r_(r) {}

  Ints at(int64_t c, Floats x) {
    if constexpr (kStochastic) {
      return affine_stochastic(x, h_, inv_, F::kLevels, load_halves(r_ + c));
    } else {
      return affine_nearest(x, h_, inv_, F::kLevels);
    }
  }

 private:
  const AffineHeader h_;
  const float inv_;
  const uint16_t* r_;
};

// The same in a third of the instructions, for a row that allows it (affine.h): they hold unless
// some came too near to another.
template <bool kStochastic>
class QuickCodes {
 public:
  QuickCodes(AffineHeader h, const uint16_t* r) : bias_(h.bias), inv_(1.0f / h.scale), r_(r) {}

  Ints at(int64_t c, Floats x) {
    Ints sum = affine_quick(x, bias_, inv_);
    if constexpr (kStochastic) {
      sum = sum + load_halves(r_ + c);
    } else {
      sum = sum + 32768;
    }
    near_ = near_ | affine_is_near(sum);
    return sum >> 16;
  }
  bool hold() const { return !any(near_); }

 private:
  const float bias_, inv_;
  const uint16_t* r_;
  Ints near_ = 0;
};

// The codes of 16 columns from c on, of which `out` gets 16 / kPerByte bytes.
template <class F, class Codes>
inline void encode_block(const float* x, int64_t c, Codes& codes, uint8_t* out) {
  uint8_t bytes[kCodeBlock];
  for (int i = 0; i < kCodeBlock; i += kLanes) {
    const LaneBytes narrow =
        __builtin_convertvector(codes.at(c + i, Floats::load(x + i)).v, LaneBytes);
    memcpy(bytes + i, &narrow, sizeof narrow);
  }
  CodeBytes all;
  memcpy(&all, bytes, sizeof all);
  store_codes<F::kPerByte>(all, out);
}

// pad: a value of code 0, for what lies beyond the row.
template <class F, class Codes>
inline void encode_codes(const float* x, int64_t dim, float pad, Codes& codes, uint8_t* row) {
  int64_t c = 0;
  for (; c + kCodeBlock <= dim; c += kCodeBlock) {
    encode_block<F>(x + c, c, codes, row + c / F::kPerByte);
  }
  if (c == dim) return;
  float rest[kCodeBlock];
  uint8_t bytes[kCodeBlock];
  for (int64_t i = 0; i < kCodeBlock; ++i) rest[i] = c + i < dim ? x[c + i] : pad;
  encode_block<F>(rest, c, codes, bytes);
  memcpy(row + c / F::kPerByte, bytes, static_cast<size_t>(F::code_bytes(dim) - c / F::kPerByte));
}

template <class F, bool kStochastic>
__attribute__((noinline)) void encode_exactly(const float* x, const uint16_t* r, int64_t dim,
                                              AffineHeader h, uint8_t* row) {
  ExactCodes<F, kStochastic> codes(h, r);
  encode_codes<F>(x, dim, h.bias, codes, row);
}

// Of so many columns one in eight has to be done again; of a whole row of thousands most would.
constexpr int64_t kQuickColumns = 16 * kCodeBlock;

template <class F, bool kStochastic>
inline void encode_affine(const float* x, const uint16_t* r, int64_t dim, AffineHeader h,
                          bool quick, uint8_t* row) {
  if (!quick) return encode_exactly<F, kStochastic>(x, r, dim, h, row);
  for (int64_t c = 0; c < dim; c += kQuickColumns) {
    const int64_t n = min64(dim - c, kQuickColumns);
    const uint16_t* const draws = kStochastic ? r + c : nullptr;
    uint8_t* const out = row + c / F::kPerByte;
    QuickCodes<kStochastic> codes(h, draws);
    encode_codes<F>(x + c, n, h.bias, codes, out);
    if (!codes.hold()) encode_exactly<F, kStochastic>(x + c, draws, n, h, out);
  }
}

MPE_END
