// Rowwise affine codes: value = code * scale + bias. Shared by the integer formats, which differ in
// bits a code, 8 at most, and in the header's type (docs/numerics.md, section 2).
#ifndef MPEMBED_FORMAT_AFFINE_H
#define MPEMBED_FORMAT_AFFINE_H

#include "mpembed/lanes.h"
#include "mpembed/macros.h"
#include "mpembed/philox.h"
#include "mpembed/round.h"

MPE_BEGIN

// The family of these formats: what kernels choose their code for a row's layout by.
struct AffineFamily {};

template <class X>
struct ScaleAndBias {
  X scale;
  X bias;
};
using AffineHeader = ScaleAndBias<float>;

template <class X>
MPE_HD X limit_to(X x, float bound) {
  x = select(x > bound, bound, x);
  return select(-bound > x, -bound, x);
}

// Header types: how scale and bias are chosen for a range, stored and loaded. The range is limited
// to kRangeBits in magnitude. Because the scale is rounded up, a row at that limit decodes to
// slightly more; kMaxAbsBits, 2^-6 higher, is what may be stored, so that such a row stays
// storable.
struct HeaderFp32 {
  static constexpr int64_t kBytes = 8;
  static constexpr float kEpsilon = 0x1p-23f;
  static constexpr uint32_t kRangeBits = 0x7E800000u;   // 2^126: no range overflows
  static constexpr uint32_t kMaxAbsBits = 0x7E820000u;  // 2^126 * (1 + 2^-6)

  template <class X>
  static MPE_HD ScaleAndBias<X> fit(X mn, X mx, float levels) {
    mn = limit_to(mn, bits_float(kRangeBits));
    mx = limit_to(mx, bits_float(kRangeBits));
    X scale = larger((mx - mn) / levels, X(1.17549435e-38f));
    for (;;) {
      const auto low = mx > fused(X(levels), scale, mn);
      if (!any(low)) break;
      scale = bits_value(int_bits(scale) + (low & 1));
    }
    return {select(mx > mn, scale, 0.0f), mn};
  }
  static MPE_HD void store(uint8_t* p, AffineHeader h) {
    store_unaligned(p, h.scale);
    store_unaligned(p + 4, h.bias);
  }
  // A number that tells headers apart.
  static MPE_HD uint32_t nonce(AffineHeader h) {
    return float_bits(h.scale) ^ (float_bits(h.bias) * 0x9E3779B9u);
  }
  static MPE_HD AffineHeader load(const uint8_t* p) {
    const uint64_t both = load_unaligned<uint64_t>(p);
    return AffineHeader{bits_float(static_cast<uint32_t>(both)),
                        bits_float(static_cast<uint32_t>(both >> 32))};
  }
};

struct HeaderFp16 {
  static constexpr int64_t kBytes = 4;
  static constexpr float kEpsilon = 0x1p-10f;
  static constexpr uint32_t kRangeBits = 0x477FE000u;   // 65504
  static constexpr uint32_t kMaxAbsBits = 0x4781EFC0u;  // 65504 * (1 + 2^-6)

  template <class X>
  static MPE_HD ScaleAndBias<X> fit(X mn, X mx, float levels) {
    mn = limit_to(mn, bits_float(kRangeBits));
    mx = limit_to(mx, bits_float(kRangeBits));
    const X bias = half_value(half_code_down(mn));
    auto s = half_code_up((mx - bias) / levels);
    for (;;) {
      const auto low = mx > fused(X(levels), half_value(s), bias);
      if (!any(low)) break;
      s = s + (low & 1);
    }
    return {half_value(s), bias};
  }
  // Both are FP16 values already, so that nearest is exact.
  template <class X>
  static MPE_HD auto packed(ScaleAndBias<X> h) {
    return half_code(h.scale) | (half_code(h.bias) << 16);
  }
  static MPE_HD void store(uint8_t* p, AffineHeader h) { store_unaligned(p, packed(h)); }
  static MPE_HD uint32_t nonce(AffineHeader h) { return static_cast<uint32_t>(packed(h)); }
  static MPE_HD AffineHeader load(const uint8_t* p) {
    const uint32_t both = load_unaligned<uint32_t>(p);
    return AffineHeader{half_to_float(static_cast<uint16_t>(both)),
                        half_to_float(static_cast<uint16_t>(both >> 16))};
  }
};

// The header of a row for one of its negative, and the other way round. Code k then means the value
// that k means there, negated: so codes count from the row's largest value down, and a draw that
// rounds up there rounds down here. A zero stays positive.
template <class X>
MPE_HD ScaleAndBias<X> mirrored(ScaleAndBias<X> h) {
  return {X(0.0f) - h.scale, X(0.0f) - h.bias};
}

// What a write is to paired rounding: the first of a pair, a single write or the second of a pair.
// The first stores a mirrored header, which has a negative scale; the second follows it. Both use
// the draws that this header stands for. A write that hardly moves the range is no part of a pair:
// it would gain nothing, could meet the same header, and so the same draws, again and again, and
// could lose more, because a header that is rounded at the other end of the range moves all codes.
constexpr float kFirstOfPair = -1.0f, kSingleWrite = 0.0f, kSecondOfPair = 1.0f;
constexpr float kPairedMove = 0x1p-6f;  // steps by which an end of the range moves at least

// The two codes around x as they decode, and how far x lies between them. X and K are one value or
// a vector of them: float and int32_t, or the types of kernels/cpu/lanes.h.
template <class X, class K>
struct AffineSplit {
  K k;
  X p;
};

template <class X>
MPE_HD auto affine_split(X x, AffineHeader h, float inv, int32_t levels) {
  const auto k = clamp(to_int((x - h.bias) * inv), 0, levels - 1);
  const X y0 = fused(to_float(k), h.scale, h.bias);
  const X y1 = fused(to_float(k + 1), h.scale, h.bias);
  const X gap = y1 - y0;
  const X p = (x - y0) / select(gap == 0.0f, 1.0f, gap);
  return AffineSplit<X, decltype(to_int(x))>{k, select(gap == 0.0f, 0.0f, p)};
}

template <class X, class Draw>
MPE_HD auto affine_stochastic(X x, AffineHeader h, float inv, int32_t levels, Draw draw16) {
  const auto s = affine_split(x, h, inv, levels);
  // A value far below the stored range has a p that rn_to_int does not reach: code 0 as well.
  const auto fixed = rn_to_int(larger(s.p, X(-32.0f)) * 65536.0f);
  const decltype(to_int(x)) r = draw16;
  return clamp(s.k + ((fixed + r) >> 16), 0, levels);
}

template <class X>
MPE_HD auto affine_nearest(X x, AffineHeader h, float inv, int32_t levels) {
  const auto s = affine_split(x, h, inv, levels);
  const auto half_even = select(s.p == 0.5f, s.k & 1, 0);
  return clamp(s.k + select(s.p > 0.5f, 1, half_even), 0, levels);
}

// A quicker way to the same code: (x - bias) / scale in 2^-16 of a step, with one rounding after
// the other. In a row that affine_is_quick accepts it lies within 13 of the k and p of
// affine_split: less than 4 of that from the inverse, the difference, the product and going over to
// integers (255 codes at 2^-24 each, half of that for the product, up to 1), 8 from the neighbours,
// between which p weighs (2048 steps at 2^-24), half a one from the rounding of p. A draw is added
// to either; where that does not come within kQuickError of a whole code, both give the same one.
constexpr int32_t kQuickError = 16;     // a power of two
constexpr float kQuickReach = 2048.0f;  // steps between zero and a value

constexpr int32_t kQuickNearest = 32768;  // the draw where codes are rounded to nearest

// That, and kQuickError. With a draw added, bits 16 and up are the code unless affine_is_near.
constexpr float kQuickSteps = 65536.0f;
template <class X>
MPE_HD auto affine_quick(X x, float bias, float inv) {
  return to_int(about(x - bias, X(inv * kQuickSteps), X(static_cast<float>(kQuickError))));
}

// Whether the sum of affine_quick and a draw is as near as that to a whole code.
template <class K>
MPE_HD auto affine_is_near(K sum) {
  return (sum & (0xFFFF & ~(2 * kQuickError - 1))) == 0;
}

// scale: its magnitude. range: what the header's type limits a row to; beyond it codes are clamped.
MPE_HD bool affine_is_quick(float mn, float mx, float scale, float range) {
  const float most = larger(-mn, mx);
  return most <= kQuickReach * scale && most <= range && scale >= 0x1p-100f;
}

// code: an integer below 2^31 or a vector of them.
template <class K>
MPE_HD auto affine_value(K code, AffineHeader h) {
  return fused(to_float(code), h.scale, h.bias);
}

// Code c takes bits [kBits * c, kBits * c + kBits) of the row, the lowest of a byte first.
template <int kBits, class Header>
struct Affine {
  using Family = AffineFamily;
  using RowHeader = AffineHeader;
  using HeaderType = Header;
  static constexpr int32_t kLevels = (1 << kBits) - 1;
  static constexpr bool kExact = false;
  static constexpr int kBitsPerCode = kBits;
  static constexpr int64_t kHeaderBytes = Header::kBytes;
  static constexpr uint32_t kMaxAbsBits = Header::kMaxAbsBits;
  static constexpr uint32_t kRangeBits = Header::kRangeBits;

  static MPE_HD int64_t code_bytes(int64_t dim) { return (dim * kBits + 7) / 8; }
  static MPE_HD int64_t row_bytes(int64_t dim) { return code_bytes(dim) + kHeaderBytes; }

  static MPE_HD AffineHeader header(const uint8_t* row, int64_t dim) {
    return Header::load(row + code_bytes(dim));
  }
  static MPE_HD void store_header(uint8_t* row, int64_t dim, AffineHeader h) {
    Header::store(row + code_bytes(dim), h);
  }
  // What a paired write of rows with these ranges is, over rows with these headers.
  template <class X>
  static MPE_HD X paired_write(ScaleAndBias<X> old, X low, X high) {
    const X top = fused(X(static_cast<float>(kLevels)), old.scale, old.bias);
    const X below = low - old.bias, above = high - top;
    const X moved = larger(larger(below, -below), larger(above, -above));
    const X rounded = (larger(-old.bias, top) + (top - old.bias)) * X(Header::kEpsilon);
    const X first = select(old.scale * X(kPairedMove) > moved, X(kSingleWrite), X(kFirstOfPair));
    const X begins = select(rounded > moved, X(kSingleWrite), first);
    return select(0 > int_bits(old.scale), X(kSecondOfPair), begins);
  }
  // The header for a row's smallest and largest value, or for several rows. A negative zero becomes
  // positive: the order of equal zeros must not matter.
  template <class X>
  static MPE_HD ScaleAndBias<X> fit(X mn, X mx) {
    return Header::fit(mn + 0.0f, mx + 0.0f, static_cast<float>(kLevels));
  }
  static MPE_HD float value(const uint8_t* row, AffineHeader h, int64_t c) {
    const int64_t bit = c * kBits;
    const uint8_t* const from = row + bit / 8;
    uint32_t bits = from[0];
    // A code may go on in the next byte: after the last one that is the header's.
    if constexpr (8 % kBits != 0) bits |= static_cast<uint32_t>(from[1]) << 8;
    return affine_value((bits >> (bit % 8)) & kLevels, h);
  }

  // visit(c, value) for every column, in order; whole groups first, so that the inner loop has a
  // constant trip count.
  template <class Visit>
  static MPE_HD void for_each(const uint8_t* row, int64_t dim, Visit visit) {
    const AffineHeader h = header(row, dim);
    const int64_t whole = dim / kGroup;
    for (int64_t g = 0; g < whole; ++g) {
      uint64_t bits = 0;
      for (int i = 0; i < kGroupBytes; ++i) {
        bits |= static_cast<uint64_t>(row[g * kGroupBytes + i]) << (8 * i);
      }
      for (int j = 0; j < kGroup; ++j) {
        const uint32_t code = static_cast<uint32_t>(bits >> (kBits * j)) & kLevels;
        visit(g * kGroup + j, affine_value(code, h));
      }
    }
    for (int64_t c = whole * kGroup; c < dim; ++c) visit(c, value(row, h, c));
  }

  // r: 16-bit draws of the row, or null for nearest. x storable (kMaxAbsBits).
  static MPE_HD void encode(const float* x, int64_t dim, uint8_t* row, const uint16_t* r) {
    float mn = x[0], mx = x[0];
    for (int64_t c = 1; c < dim; ++c) {
      mn = smaller(x[c], mn);
      mx = larger(x[c], mx);
    }
    const AffineHeader h = fit(mn, mx);
    store_header(row, dim, h);
    if (h.scale == 0.0f) {
      memset(row, 0, static_cast<size_t>(code_bytes(dim)));
    } else if (r != nullptr) {
      encode_codes<true>(x, dim, row, h, r);
    } else {
      encode_codes<false>(x, dim, row, h, r);
    }
  }

 private:
  // The fewest codes that fill whole bytes, and how many bytes.
  static constexpr int kGroup = kBits % 8 == 0 ? 1 : kBits % 4 == 0 ? 2 : kBits % 2 == 0 ? 4 : 8;
  static constexpr int kGroupBytes = kGroup * kBits / 8;

  template <bool kStochastic>
  static MPE_HD void encode_codes(const float* x, int64_t dim, uint8_t* row, AffineHeader h,
                                  const uint16_t* r) {
    const float inv = 1.0f / h.scale;
    for (int64_t g = 0; g * kGroup < dim; ++g) {
      uint64_t bits = 0;
      for (int j = 0; j < kGroup && g * kGroup + j < dim; ++j) {
        const int64_t c = g * kGroup + j;
        int32_t code;
        if constexpr (kStochastic) {
          code = affine_stochastic(x[c], h, inv, kLevels, r[c]);
        } else {
          code = affine_nearest(x[c], h, inv, kLevels);
        }
        bits |= static_cast<uint64_t>(code) << (kBits * j);
      }
      const int64_t left = code_bytes(dim) - g * kGroupBytes;
      for (int i = 0; i < kGroupBytes && i < left; ++i) {
        row[g * kGroupBytes + i] = static_cast<uint8_t>(bits >> (8 * i));
      }
    }
  }
};

MPE_END

#endif
