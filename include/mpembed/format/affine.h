// Rowwise affine codes: value = code * scale + bias. Shared by int8, int8_fp16, int4 and int2,
// which differ in bits a code and in the header's type (docs/numerics.md, section 2).
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
  static MPE_HD AffineHeader load(const uint8_t* p) {
    const uint64_t both = load_unaligned<uint64_t>(p);
    return AffineHeader{bits_float(static_cast<uint32_t>(both)),
                        bits_float(static_cast<uint32_t>(both >> 32))};
  }
};

struct HeaderFp16 {
  static constexpr int64_t kBytes = 4;
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
  static MPE_HD AffineHeader load(const uint8_t* p) {
    const uint32_t both = load_unaligned<uint32_t>(p);
    return AffineHeader{half_to_float(static_cast<uint16_t>(both)),
                        half_to_float(static_cast<uint16_t>(both >> 16))};
  }
};

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
  const X p = (x - y0) / select(gap > 0.0f, gap, 1.0f);
  return AffineSplit<X, decltype(to_int(x))>{k, select(gap > 0.0f, p, 0.0f)};
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
// the other. In a row that affine_is_quick accepts it lies within 11 of the k and p of
// affine_split: at most 3 of that from the inverse, the difference and the product (255 codes at
// 2^-24 each), 6 from the two neighbours (512 steps, at 2^-24 each), the rest from going over to
// integers. A draw is added to either; where that does not come within kQuickError of a whole code,
// both give the same one.
constexpr int32_t kQuickError = 16;  // a power of two

constexpr float kQuickSteps = 65536.0f;
template <class X>
MPE_HD auto affine_quick(X x, float bias, float inv) {
  return to_int((x - bias) * (inv * kQuickSteps));
}

// Whether a sum of affine_quick and a draw is as near as that to a whole code.
template <class K>
MPE_HD auto affine_is_near(K sum) {
  return ((sum + kQuickError) & (0xFFFF & ~(2 * kQuickError - 1))) == 0;
}

// range: what the header's type limits a row to; beyond it codes are clamped.
MPE_HD bool affine_is_quick(float mn, float mx, float scale, float range) {
  const float most = larger(-mn, mx);
  return most <= 512.0f * scale && most <= range && scale >= 0x1p-100f;
}

// code: an integer below 2^31 or a vector of them.
template <class K>
MPE_HD auto affine_value(K code, AffineHeader h) {
  return fused(to_float(code), h.scale, h.bias);
}

template <int kBits, class Header>
struct Affine {
  using Family = AffineFamily;
  using RowHeader = AffineHeader;
  using HeaderType = Header;
  static constexpr int32_t kLevels = (1 << kBits) - 1;
  static constexpr int kPerByte = 8 / kBits;
  static constexpr bool kExact = false;
  static constexpr int kBitsPerCode = kBits;
  static constexpr int64_t kHeaderBytes = Header::kBytes;
  static constexpr uint32_t kMaxAbsBits = Header::kMaxAbsBits;
  static constexpr uint32_t kRangeBits = Header::kRangeBits;

  static MPE_HD int64_t code_bytes(int64_t dim) { return (dim + kPerByte - 1) / kPerByte; }
  static MPE_HD int64_t row_bytes(int64_t dim) { return code_bytes(dim) + kHeaderBytes; }

  static MPE_HD AffineHeader header(const uint8_t* row, int64_t dim) {
    return Header::load(row + code_bytes(dim));
  }
  static MPE_HD void store_header(uint8_t* row, int64_t dim, AffineHeader h) {
    Header::store(row + code_bytes(dim), h);
  }
  // The header for a row's smallest and largest value, or for several rows. A negative zero becomes
  // positive: the order of equal zeros must not matter.
  template <class X>
  static MPE_HD ScaleAndBias<X> fit(X mn, X mx) {
    return Header::fit(mn + 0.0f, mx + 0.0f, static_cast<float>(kLevels));
  }
  static MPE_HD float value(const uint8_t* row, AffineHeader h, int64_t c) {
    const uint32_t byte = row[c / kPerByte];
    return affine_value((byte >> (kBits * (c % kPerByte))) & kLevels, h);
  }

  // visit(c, value) for every column, in order within a byte; whole bytes first, so that the inner
  // loop has a constant trip count.
  template <class Visit>
  static MPE_HD void for_each(const uint8_t* row, int64_t dim, Visit visit) {
    const AffineHeader h = header(row, dim);
    const int64_t whole = dim / kPerByte;
    for (int64_t b = 0; b < whole; ++b) {
      const uint32_t byte = row[b];
      for (int j = 0; j < kPerByte; ++j) {
        visit(b * kPerByte + j, affine_value((byte >> (kBits * j)) & kLevels, h));
      }
    }
    for (int64_t c = whole * kPerByte; c < dim; ++c) visit(c, value(row, h, c));
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
  template <bool kStochastic>
  static MPE_HD void encode_codes(const float* x, int64_t dim, uint8_t* row, AffineHeader h,
                                  const uint16_t* r) {
    const float inv = 1.0f / h.scale;
    for (int64_t b = 0; b < code_bytes(dim); ++b) {
      int32_t byte = 0;
      for (int j = 0; j < kPerByte && b * kPerByte + j < dim; ++j) {
        const int64_t c = b * kPerByte + j;
        int32_t code;
        if constexpr (kStochastic) {
          code = affine_stochastic(x[c], h, inv, kLevels, r[c]);
        } else {
          code = affine_nearest(x[c], h, inv, kLevels);
        }
        byte |= code << (kBits * j);
      }
      row[b] = static_cast<uint8_t>(byte);
    }
  }
};

MPE_END

#endif
