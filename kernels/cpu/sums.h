// The outputs of a table: made in FP32, and narrowed where they are to be in another format.
#pragma once

#include "cpu/lanes.h"
#include "outputs.h"

MPE_BEGIN

// Where a table's sums are made: in the output, or in FP32 to be narrowed.
class Sums {
 public:
  // room: for one row, unless the output is in FP32.
  Sums(const mpe_outputs& outputs, const mpe_group& group, int64_t t, float* room)
      : rows_(outputs, group.tables[t], t), dim_(group.dim), format_(outputs.format), room_(room) {}

  float* begin(int64_t row) const {
    return narrow() ? room_ : reinterpret_cast<float*>(rows_.row(row));
  }
  void end(int64_t row) const {
    if (narrow()) write(rows_.row(row));
  }

 private:
  bool narrow() const { return format_ != MPE_format_fp32; }
  __attribute__((noinline)) void write(uint8_t* out) const {
    with_output_format(format_, [&](auto format) {
      using Format = decltype(format);
      if constexpr (!Format::kExact) {
        int64_t c = 0;
        for (; c + kLanes <= dim_; c += kLanes) {
          store_halves(Format::Convert::code_of_any(Floats::load(room_ + c)), out + 2 * c);
        }
        for (; c < dim_; ++c) {
          const auto code = static_cast<uint16_t>(Format::Convert::code_of_any(room_[c]));
          store_unaligned(out + 2 * c, code);
        }
      }
    });
  }

  const OutputRows rows_;
  const int64_t dim_;
  const int32_t format_;
  float* const room_;
};

MPE_END
