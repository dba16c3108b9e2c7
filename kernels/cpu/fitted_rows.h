// Rows that are encoded together, and the headers and codes of those in an integer format.
#pragma once

#include "cpu/codes.h"
#include "mpembed/philox.h"

MPE_BEGIN

constexpr int64_t kMaxRows = 16;  // that are encoded at a time

struct EncodedRow {
  const float* x;
  uint8_t* out;
};

// The draws of row i, of `stride` a row; null for nearest rounding.
inline const uint16_t* row_draws(const uint16_t* draws, int64_t stride, int64_t i) {
  return draws == nullptr ? nullptr : draws + i * stride;
}

// The headers of rows of an integer format: they are chosen first, because paired draws depend on
// them.
template <class Format>
class FittedRows {
 public:
  // paired: what a row overwrites says which write of a pair this is.
  FittedRows(const EncodedRow* rows, int64_t n, int64_t dim, bool paired)
      : rows_(rows), n_(n), dim_(dim) {
    for (int64_t i = 0; i < n; ++i) range_of(rows[i].x, dim, low_ + i, high_ + i);
    if (paired) {
      load_old_headers();
      fit<true>();
      for (int64_t i = 0; i < n; ++i) {
        const uint32_t own = new_nonce(i);
        nonce_[i] = kind_[i] == kFirstOfPair ? own : nonce_[i];
      }
    } else {
      fit<false>();
    }
  }

  // The stream of row i's paired draws, given that of a single write. Without a branch, which could
  // not be foreseen.
  RowStream stream(int64_t i, const RowStream& single) const {
    const RowStream pair = single.pair(nonce_[i]);
    const bool alone = kind_[i] == kSingleWrite;
    RowStream chosen = single;
    chosen.c0 = alone ? single.c0 : pair.c0;
    chosen.c3 = alone ? single.c3 : pair.c3;
    return chosen;
  }

  // draws: `stride` of them a row, a multiple of 16; null for nearest rounding.
  void encode(const uint16_t* draws, int64_t stride) const {
    for (int64_t i = 0; i < n_; ++i) {
      const AffineHeader header{scale_[i], bias_[i]};
      const bool quick = affine_is_quick(low_[i], high_[i], larger(header.scale, -header.scale),
                                         bits_float(Format::kRangeBits));
      const uint16_t* const own = row_draws(draws, stride, i);
      if (header.scale == 0.0f) {
        memset(rows_[i].out, 0, static_cast<size_t>(Format::code_bytes(dim_)));
      } else if (own != nullptr) {
        encode_affine<Format, true>(rows_[i].x, own, dim_, header, quick, rows_[i].out);
      } else {
        encode_affine<Format, false>(rows_[i].x, nullptr, dim_, header, quick, rows_[i].out);
      }
    }
  }

 private:
  static constexpr bool kPackedHeader = Format::kHeaderBytes == sizeof(int32_t);

  uint8_t* header_of(int64_t i) const { return rows_[i].out + Format::code_bytes(dim_); }

  void load_old_headers() {
    for (int64_t i = 0; i < n_; ++i) {
      if constexpr (kPackedHeader) {
        packed_[i] = load_unaligned<int32_t>(header_of(i));
        nonce_[i] = static_cast<uint32_t>(packed_[i]);
      } else {
        const AffineHeader header = Format::HeaderType::load(header_of(i));
        scale_[i] = header.scale;
        bias_[i] = header.bias;
        nonce_[i] = Format::HeaderType::nonce(header);
      }
    }
  }
  ScaleAndBias<Floats> old_headers(int64_t i) const {
    if constexpr (kPackedHeader) {
      const Ints packed = Ints::load(packed_ + i);
      return {half_value(packed & 0xFFFF), half_value((packed >> 16) & 0xFFFF)};
    } else {
      return {Floats::load(scale_ + i), Floats::load(bias_ + i)};
    }
  }
  uint32_t new_nonce(int64_t i) const {
    if constexpr (kPackedHeader) return static_cast<uint32_t>(packed_[i]);
    return Format::HeaderType::nonce(AffineHeader{scale_[i], bias_[i]});
  }

  template <bool kPaired>
  void fit() {
    for (int64_t i = 0; i < n_; i += kLanes) {
      Floats low = Floats::load(low_ + i), high = Floats::load(high_ + i);
      Ints mirror = 0;
      if constexpr (kPaired) {
        const Floats kind = Format::paired_write(old_headers(i), low, high);
        kind.store(kind_ + i);
        mirror = kind == Floats(kFirstOfPair);
        const Floats least = select(mirror, -high, low);
        high = select(mirror, -low, high);
        low = least;
      }
      ScaleAndBias<Floats> header = Format::fit(low, high);
      if constexpr (kPaired) {
        const ScaleAndBias<Floats> other = mirrored(header);
        header = {select(mirror, other.scale, header.scale),
                  select(mirror, other.bias, header.bias)};
      }
      header.scale.store(scale_ + i);
      header.bias.store(bias_ + i);
      if constexpr (kPackedHeader) Format::HeaderType::packed(header).store(packed_ + i);
    }
    for (int64_t i = 0; i < n_; ++i) {
      if constexpr (kPackedHeader) {
        store_unaligned(header_of(i), packed_[i]);
      } else {
        Format::store_header(rows_[i].out, dim_, AffineHeader{scale_[i], bias_[i]});
      }
    }
  }

  const EncodedRow* const rows_;
  const int64_t n_, dim_;
  float low_[kMaxRows] = {}, high_[kMaxRows] = {}, kind_[kMaxRows];
  float scale_[kMaxRows] = {}, bias_[kMaxRows] = {};  // of the old headers, then of the new ones
  int32_t packed_[kMaxRows] = {};
  uint32_t nonce_[kMaxRows];
};

MPE_END
