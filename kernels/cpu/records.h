// Rows with their states: read from a table into FP32, and encoded back.
#pragma once

#include "cpu/before_write.h"
#include "cpu/encode.h"
#include "cpu/slots.h"

MPE_BEGIN

// A state of one value.
inline float load_value(const mpe_state& state, int64_t row) {
  return with_state_format(state.format, [&](auto format) {
    using Format = decltype(format);
    const uint8_t* stored = state.data + row * state.stride;
    return Format::value(stored, Format::header(stored, 1), 0);
  });
}

inline void decode_state(const mpe_state& state, int64_t row, int64_t dim, float* out) {
  with_state_format(state.format, [&](auto format) {
    decode_row<decltype(format)>(state.data + row * state.stride, dim, out);
  });
}

// Collects the new values of a state of one value. They are written together: until then, the
// memory that they go to can arrive, and their draws come from one run of Philox.
class ValueEncoder {
 public:
  ValueEncoder(const mpe_group& group, int state) : group_(group), state_(state) {}
  ~ValueEncoder() { flush(); }
  ValueEncoder(const ValueEncoder&) = delete;
  ValueEncoder& operator=(const ValueEncoder&) = delete;

  // x: storable; row: its number in the table.
  void add(const mpe_table& table, int64_t row, float x) {
    values_[n_] = Value{&table, row, x};
    if (++n_ == kMaxRows) flush();
  }

  void flush() {
    if (n_ == 0) return;
    uint16_t draws[kMaxRows * 8 + DrawBatch::kBlocksAtOnce * 8];
    const bool random = group_.rounding != MPE_rounding_nearest;
    bool drawn = false;
    for (int64_t i = 0; i < n_; ++i) {
      const mpe_state& state = values_[i].table->states[state_];
      with_state_format(state.format, [&](auto format) {
        using Format = decltype(format);
        const bool draws_bits = random && !Format::kExact;
        if (draws_bits && !drawn) draw(draws);
        drawn = drawn || draws_bits;
        Format::encode(&values_[i].x, 1, state.data + values_[i].row * state.stride,
                       draws_bits ? draws + i * 8 : nullptr);
      });
    }
    n_ = 0;
  }

 private:
  struct Value {
    const mpe_table* table;
    int64_t row;
    float x;
  };

  // For each the draw of column 0, in the first of a block's eight.
  __attribute__((noinline)) void draw(uint16_t* draws) const {
    DrawBatch batch;
    for (int64_t i = 0; i < n_; ++i) {
      batch.add(row_stream(group_, state_domain(state_), *values_[i].table, values_[i].row), 0, 1);
    }
    batch.run(group_.seed, draws);
  }

  const mpe_group& group_;
  const int state_;
  int64_t n_ = 0;
  Value values_[kMaxRows];
};

// Encodes rows and their states into the group's tables. One task's: the encoders take turns with
// its memory.
class RecordEncoder {
 public:
  RecordEncoder(const mpe_group& group, const StateShapes& shapes,
                const EncoderWorkspace& workspace, int64_t task)
      : shapes_(shapes),
        row_(group, kDomainRow, workspace, task),
        elements_{{group, state_domain(shapes.element[0]), workspace, task},
                  {group, state_domain(shapes.element[1]), workspace, task}},
        values_{{group, shapes.value[0]}, {group, shapes.value[1]}} {}

  // row: its number in the table. elements: those of states of a value an element. All must stay
  // where they are until flush(), but not the states of one value.
  void add(const mpe_table& table, int64_t row, const float* x, const float* const* elements,
           const float* values) {
    before_write(table, row);
    row_.add(table, row, x);
    for (int i = 0; i < shapes_.num_elements; ++i) {
      const mpe_state& state = table.states[shapes_.element[i]];
      elements_[i].add(state.format, table, row, elements[i], state.data + row * state.stride);
    }
    for (int i = 0; i < shapes_.num_values; ++i) values_[i].add(table, row, values[i]);
  }

  void flush() {
    row_.flush();
    for (int i = 0; i < shapes_.num_elements; ++i) elements_[i].flush();
    for (int i = 0; i < shapes_.num_values; ++i) values_[i].flush();
  }

 private:
  static_assert(MPE_MAX_STATES == 2, "the constructor lists the states' encoders");

  const StateShapes& shapes_;
  RowEncoder row_;
  RowEncoder elements_[MPE_MAX_STATES];
  ValueEncoder values_[MPE_MAX_STATES];
};

MPE_END
