// Plain rows: one stored value a column, no header. Shared by fp32, fp16 and bf16, which differ in
// the stored type and its conversions.
#ifndef MPEMBED_FORMAT_PLAIN_H
#define MPEMBED_FORMAT_PLAIN_H

#include "mpembed/macros.h"
#include "mpembed/round.h"

MPE_BEGIN

// The family of these formats: what kernels choose their code for a row's layout by.
struct PlainFamily {};

struct NoHeader {};

template <class StoredType, class ConvertType>
struct Plain {
  using Family = PlainFamily;
  using Stored = StoredType;
  using Convert = ConvertType;
  using RowHeader = NoHeader;
  static constexpr int kBitsPerCode = 8 * static_cast<int>(sizeof(Stored));
  static constexpr int64_t kHeaderBytes = 0;
  static constexpr bool kExact = Convert::kExact;
  static constexpr uint32_t kMaxAbsBits = Convert::kMaxAbsBits;

  static MPE_HD int64_t code_bytes(int64_t dim) {
    return dim * static_cast<int64_t>(sizeof(Stored));
  }
  static MPE_HD int64_t row_bytes(int64_t dim) { return code_bytes(dim); }

  static MPE_HD Stored stored(const uint8_t* row, int64_t c) {
    return load_unaligned<Stored>(row + c * static_cast<int64_t>(sizeof(Stored)));
  }

  static MPE_HD float widen(float v) { return v; }
  static MPE_HD float widen(uint16_t v) { return Convert::widen(static_cast<int32_t>(v)); }

  static MPE_HD NoHeader header(const uint8_t*, int64_t) { return NoHeader{}; }
  static MPE_HD float value(const uint8_t* row, NoHeader, int64_t c) {
    return widen(stored(row, c));
  }

  template <class Visit>
  static MPE_HD void for_each(const uint8_t* row, int64_t dim, Visit visit) {
    for (int64_t c = 0; c < dim; ++c) visit(c, widen(stored(row, c)));
  }

  // r: 16-bit draws of the row, or null for nearest. x storable (kMaxAbsBits).
  static MPE_HD void encode(const float* __restrict x, int64_t dim, uint8_t* __restrict row,
                            const uint16_t* __restrict r) {
    constexpr int64_t kSize = static_cast<int64_t>(sizeof(Stored));
    if (kExact || r == nullptr) {
      for (int64_t c = 0; c < dim; ++c) store_unaligned(row + c * kSize, Convert::nearest(x[c]));
    } else {
      for (int64_t c = 0; c < dim; ++c) {
        store_unaligned(row + c * kSize, Convert::stochastic(x[c], r[c]));
      }
    }
  }
};

MPE_END

#endif
