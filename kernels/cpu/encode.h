// Encodes rows into their tables' formats, several at a time: their draws come from one run of
// Philox, and the chain of dependent steps of one row hides behind another's.
#pragma once

#include "cpu/codes.h"
#include "cpu/draws.h"

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

// draws: `stride` of them a row, a multiple of 16; null for nearest rounding.
template <class Format>
void encode_rows(PlainFamily, const EncodedRow* rows, int64_t n, int64_t dim, const uint16_t* draws,
                 int64_t stride) {
  for (int64_t i = 0; i < n; ++i) {
    if constexpr (Format::kExact) {
      copy_floats(rows[i].x, rows[i].out, dim);
    } else {
      Format::encode(rows[i].x, dim, rows[i].out, row_draws(draws, stride, i));
    }
  }
}

template <class Format>
void encode_rows(AffineFamily, const EncodedRow* rows, int64_t n, int64_t dim,
                 const uint16_t* draws, int64_t stride) {
  constexpr bool kPackedHeader = Format::kHeaderBytes == sizeof(int32_t);
  float low[kMaxRows] = {}, high[kMaxRows] = {}, scale[kMaxRows], bias[kMaxRows];
  int32_t packed[kMaxRows];
  for (int64_t i = 0; i < n; ++i) range_of(rows[i].x, dim, low + i, high + i);
  for (int64_t i = 0; i < n; i += kLanes) {
    const ScaleAndBias<Floats> header = Format::fit(Floats::load(low + i), Floats::load(high + i));
    header.scale.store(scale + i);
    header.bias.store(bias + i);
    if constexpr (kPackedHeader) Format::HeaderType::packed(header).store(packed + i);
  }
  for (int64_t i = 0; i < n; ++i) {
    const AffineHeader header{scale[i], bias[i]};
    const bool quick =
        affine_is_quick(low[i], high[i], header.scale, bits_float(Format::kRangeBits));
    if constexpr (kPackedHeader) {
      store_unaligned(rows[i].out + Format::code_bytes(dim), packed[i]);
    } else {
      Format::store_header(rows[i].out, dim, header);
    }
    const uint16_t* const own = row_draws(draws, stride, i);
    if (header.scale == 0.0f) {
      memset(rows[i].out, 0, static_cast<size_t>(Format::code_bytes(dim)));
    } else if (own != nullptr) {
      encode_affine<Format, true>(rows[i].x, own, dim, header, quick, rows[i].out);
    } else {
      encode_affine<Format, false>(rows[i].x, nullptr, dim, header, quick, rows[i].out);
    }
  }
}

// The stream of a table's row in a domain, at the group's step.
inline RowStream row_stream(const mpe_group& group, RngDomain domain, const mpe_table& table,
                            int64_t row) {
  return {group.seed, domain, static_cast<uint32_t>(table.table_id),
          static_cast<uint64_t>(table.first_row + row), *group.step};
}

// Blocks of eight draws a row, an even number: columns are encoded 16 at a time.
inline int64_t draw_blocks(int64_t dim) { return (dim + kCodeBlock - 1) / kCodeBlock * 2; }

// How many rows of a dimension an encoder collects before it flushes.
inline int64_t encoder_capacity(int64_t dim) {
  const int64_t rows = DrawBatch::kCapacity / draw_blocks(dim);
  return rows < 1 ? 1 : (rows < kMaxRows ? rows : kMaxRows);
}

// The memory of the encoders of all tasks. `values`: with room for the rows' values too.
class EncoderWorkspace {
 public:
  EncoderWorkspace(int64_t tasks, int64_t dim, bool values)
      : stride_(draw_blocks(dim) * 8),
        capacity_(encoder_capacity(dim)),
        draws_(tasks * draws_size()),
        values_(values ? tasks * capacity_ * stride_ : 0) {}

  bool ok() const { return draws_.ok() && values_.ok(); }
  // Draws a row, and values a row: its columns, rounded up to whole code blocks.
  int64_t stride() const { return stride_; }
  uint16_t* draws(int64_t task) const { return draws_.get() + task * draws_size(); }
  float* values(int64_t task) const { return values_.get() + task * capacity_ * stride_; }

 private:
  int64_t draws_size() const { return capacity_ * stride_ + DrawBatch::kBlocksAtOnce * 8; }

  const int64_t stride_, capacity_;
  Workspace<uint16_t> draws_;
  Workspace<float> values_;
};

// Collects rows to encode with a group's rounding and step. Their values must stay where they are
// until flush(), which the encoder also calls when it is full, when the format changes, and at the
// end of its life.
class RowEncoder {
 public:
  RowEncoder(const mpe_group& group, RngDomain domain, const EncoderWorkspace& workspace,
             int64_t task)
      : group_(group),
        domain_(domain),
        capacity_(encoder_capacity(group.dim)),
        stride_(workspace.stride()),
        draws_(workspace.draws(task)),
        values_(workspace.values(task)) {}
  ~RowEncoder() { flush(); }
  RowEncoder(const RowEncoder&) = delete;
  RowEncoder& operator=(const RowEncoder&) = delete;

  // Where the values of the next row, in this format, may be put.
  float* next(int32_t format) {
    set_format(format);
    return values_ + n_ * stride_;
  }

  // x: storable values of a table's row, or of its state; out: where they belong, in this format.
  void add(int32_t format, const mpe_table& table, int64_t row, const float* x, uint8_t* out) {
    set_format(format);
    rows_[n_] = EncodedRow{x, out};
    keys_[n_] = Key{&table, row};
    if (++n_ == capacity_) flush();
  }
  void add(const mpe_table& table, int64_t row, const float* x) {
    add(table.precision, table, row, x, table.rows + row * table.row_stride);
  }

  __attribute__((noinline)) void flush() {
    if (n_ == 0) return;
    with_format(format_, [&](auto format) {
      using Format = decltype(format);
      const bool stochastic = !Format::kExact && group_.rounding == MPE_rounding_stochastic;
      if (stochastic) draw();
      encode_rows<Format>(typename Format::Family{}, rows_, n_, group_.dim,
                          stochastic ? draws_ : nullptr, stride_);
    });
    n_ = 0;
  }

 private:
  struct Key {
    const mpe_table* table;
    int64_t row;
  };

  void set_format(int32_t format) {
    if (format == format_) return;
    flush();
    format_ = format;
  }

  void draw() {
    const int64_t blocks = draw_blocks(group_.dim);
    uint16_t* draws = draws_;
    uint32_t c3 = 0;
    for (int64_t i = 0; i < n_; ++i) {
      const RowStream stream = row_stream(group_, domain_, *keys_[i].table, keys_[i].row);
      c3 = stream.c3;
      for (int64_t b = 0; b < blocks; b += DrawBatch::kCapacity) {
        const int64_t added = min64(blocks - b, DrawBatch::kCapacity);
        batch_.add(stream, b, added);
        if (added == blocks) break;
        batch_.run(group_.seed, c3, draws);  // a row of several batches is the only one
        draws += added * 8;
      }
    }
    batch_.run(group_.seed, c3, draws);
  }

  const mpe_group& group_;
  const RngDomain domain_;
  const int64_t capacity_, stride_;
  uint16_t* draws_;
  float* values_;
  int32_t format_ = -1;
  int64_t n_ = 0;
  EncodedRow rows_[kMaxRows];
  Key keys_[kMaxRows];
  DrawBatch batch_;
};

MPE_END
