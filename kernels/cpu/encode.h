// Rows on their way into their tables' formats, several at a time: their draws come from one run of
// Philox, and one row's chain of dependent steps hides behind another's.
#pragma once

#include "cpu/codes.h"
#include "cpu/draws.h"

MPE_BEGIN

constexpr int64_t kMaxRows = 16;  // at a time

struct EncodedRow {
  const float* x;
  uint8_t* out;
};

// r: `stride` draws a row, a multiple of 16; null for nearest.
template <class F>
void encode_rows(const EncodedRow* rows, int64_t n, int64_t dim, const uint16_t* r,
                 int64_t stride) {
  const auto draws = [&](int64_t i) { return r == nullptr ? nullptr : r + i * stride; };
  if constexpr (F::kHeaderBytes == 0) {
    for (int64_t i = 0; i < n; ++i) F::encode(rows[i].x, dim, rows[i].out, draws(i));
  } else {
    float mn[kMaxRows] = {}, mx[kMaxRows] = {}, scale[kMaxRows], bias[kMaxRows];
    int32_t packed[kMaxRows];
    for (int64_t i = 0; i < n; ++i) range_of(rows[i].x, dim, mn + i, mx + i);
    for (int64_t i = 0; i < n; i += kLanes) {
      const ScaleAndBias<Floats> h = F::fit(Floats::load(mn + i), Floats::load(mx + i));
      h.scale.store(scale + i);
      h.bias.store(bias + i);
      if constexpr (F::kHeaderBytes == sizeof(int32_t)) F::HeaderType::packed(h).store(packed + i);
    }
    for (int64_t i = 0; i < n; ++i) {
      const AffineHeader h{scale[i], bias[i]};
      const bool quick = affine_is_quick(mn[i], mx[i], h.scale, bits_float(F::kRangeBits));
      if constexpr (F::kHeaderBytes == sizeof(int32_t)) {
        store_unaligned(rows[i].out + F::code_bytes(dim), packed[i]);
      } else {
        F::store_header(rows[i].out, dim, h);
      }
      if (h.scale == 0.0f) {
        memset(rows[i].out, 0, static_cast<size_t>(F::code_bytes(dim)));
      } else if (r != nullptr) {
        encode_affine<F, true>(rows[i].x, draws(i), dim, h, quick, rows[i].out);
      } else {
        encode_affine<F, false>(rows[i].x, nullptr, dim, h, quick, rows[i].out);
      }
    }
  }
}

// Blocks of eight draws a row, an even number: columns are encoded 16 at a time.
inline int64_t draw_blocks(int64_t dim) { return (dim + kCodeBlock - 1) / kCodeBlock * 2; }

// How many rows of a dimension an encoder takes before it flushes.
inline int64_t encoder_room(int64_t dim) {
  const int64_t rows = DrawBatch::kRoom / draw_blocks(dim);
  return rows < 1 ? 1 : (rows < kMaxRows ? rows : kMaxRows);
}

// The memory of the encoders of all tasks. `values`: with room for the rows themselves too.
class EncoderSpace {
 public:
  EncoderSpace(int64_t tasks, int64_t dim, bool values)
      : row_(draw_blocks(dim) * 8),
        room_(encoder_room(dim)),
        draws_(tasks * draws_size()),
        values_(values ? tasks * room_ * row_ : 0) {}

  bool ok() const { return draws_.ok() && values_.ok(); }
  int64_t row() const { return row_; }
  uint16_t* draws(int64_t task) const { return draws_.get() + task * draws_size(); }
  float* values(int64_t task) const { return values_.get() + task * room_ * row_; }

 private:
  int64_t draws_size() const { return room_ * row_ + DrawBatch::kUnit * 8; }

  const int64_t row_, room_;
  Buffer<uint16_t> draws_;
  Buffer<float> values_;
};

// Collects rows to encode with a group's rounding and step. Values must stay where they are until
// flush(), which also comes by itself when the encoder is full, when the format changes, and at the
// end of its life.
class RowEncoder {
 public:
  RowEncoder(const mpe_group& g, RngDomain domain, const EncoderSpace& space, int64_t task)
      : g_(g),
        domain_(domain),
        room_(encoder_room(g.dim)),
        row_(space.row()),
        draws_(space.draws(task)),
        values_(space.values(task)) {}
  ~RowEncoder() { flush(); }
  RowEncoder(const RowEncoder&) = delete;
  RowEncoder& operator=(const RowEncoder&) = delete;

  // Where the values of the next row, in this format, may be put.
  float* next(int32_t format) {
    use(format);
    return values_ + n_ * row_;
  }

  // x: storable values of a row, `out` its place in a table of this format.
  void add(int32_t format, int32_t table_id, int64_t number, const float* x, uint8_t* out) {
    use(format);
    rows_[n_] = EncodedRow{x, out};
    tables_[n_] = static_cast<uint32_t>(table_id);
    numbers_[n_] = static_cast<uint64_t>(number);
    if (++n_ == room_) flush();
  }
  void add(const mpe_table& table, int64_t number, const float* x) {
    add(table.precision, table.table_id, number, x,
        table.rows + number * row_bytes_of(table, g_.dim));
  }

  __attribute__((noinline)) void flush() {
    if (n_ == 0) return;
    with_format(format_, [&](auto f) {
      using F = decltype(f);
      const bool stochastic = !F::kExact && g_.rounding == MPE_rounding_stochastic;
      if (stochastic) draw();
      encode_rows<F>(rows_, n_, g_.dim, stochastic ? draws_ : nullptr, row_);
    });
    n_ = 0;
  }

 private:
  void use(int32_t format) {
    if (format == format_) return;
    flush();
    format_ = format;
  }

  void draw() {
    const int64_t blocks = draw_blocks(g_.dim);
    uint16_t* r = draws_;
    uint32_t c3 = 0;
    for (int64_t i = 0; i < n_; ++i) {
      const RowStream s(g_.seed, domain_, tables_[i], numbers_[i], *g_.step);
      c3 = s.c3;
      for (int64_t b = 0; b < blocks; b += DrawBatch::kRoom) {
        const int64_t here = min64(blocks - b, DrawBatch::kRoom);
        batch_.add(s, b, here);
        if (here == blocks) break;
        batch_.run(g_.seed, c3, r);  // a row of several rooms, the only one
        r += here * 8;
      }
    }
    batch_.run(g_.seed, c3, r);
  }

  const mpe_group& g_;
  const RngDomain domain_;
  const int64_t room_, row_;
  uint16_t* draws_;
  float* values_;
  int32_t format_ = -1;
  int64_t n_ = 0;
  EncodedRow rows_[kMaxRows];
  uint32_t tables_[kMaxRows];
  uint64_t numbers_[kMaxRows];
  DrawBatch batch_;
};

MPE_END
