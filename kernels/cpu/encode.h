// Encodes rows into their tables' formats, several at a time: their draws come from one run of
// Philox, and the chain of dependent steps of one row hides behind another's.
#pragma once

#include "cpu/codes.h"
#include "cpu/draws.h"
#include "cpu/fitted_rows.h"

MPE_BEGIN

// draws: `stride` of them a row, a multiple of 16; null for nearest rounding.
template <class Format>
void encode_rows(const EncodedRow* rows, int64_t n, int64_t dim, const uint16_t* draws,
                 int64_t stride) {
  for (int64_t i = 0; i < n; ++i) {
    if constexpr (Format::kExact) {
      copy_floats(rows[i].x, rows[i].out, dim);
    } else {
      Format::encode(rows[i].x, dim, rows[i].out, row_draws(draws, stride, i));
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
      encode<Format>(typename Format::Family{});
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

  template <class Format>
  void encode(PlainFamily) {
    const bool random = !Format::kExact && group_.rounding != MPE_rounding_nearest;
    if (random) draw([&](int64_t i) { return stream(i); });
    encode_rows<Format>(rows_, n_, group_.dim, random ? draws_ : nullptr, stride_);
  }

  template <class Format>
  void encode(AffineFamily) {
    const bool random = group_.rounding != MPE_rounding_nearest;
    const bool paired = group_.rounding == MPE_rounding_paired && domain_ == kDomainRow;
    const FittedRows<Format> fitted(rows_, n_, group_.dim, paired);
    if (paired) {
      draw([&](int64_t i) { return fitted.stream(i, stream(i)); });
    } else if (random) {
      draw([&](int64_t i) { return stream(i); });
    }
    fitted.encode(random ? draws_ : nullptr, stride_);
  }

  RowStream stream(int64_t i) const {
    return row_stream(group_, domain_, *keys_[i].table, keys_[i].row);
  }

  template <class Stream>
  void draw(Stream stream) {
    const int64_t blocks = draw_blocks(group_.dim);
    uint16_t* draws = draws_;
    for (int64_t i = 0; i < n_; ++i) {
      const RowStream own = stream(i);
      for (int64_t b = 0; b < blocks; b += DrawBatch::kCapacity) {
        const int64_t added = min64(blocks - b, DrawBatch::kCapacity);
        batch_.add(own, b, added);
        if (added == blocks) break;
        batch_.run(group_.seed, draws);  // a row of several batches is the only one
        draws += added * 8;
      }
    }
    batch_.run(group_.seed, draws);
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
