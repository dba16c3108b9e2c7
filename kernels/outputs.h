// Where a table's outputs, or their gradients, lie.
#pragma once

#include "mpembed/api_types.h"
#include "mpembed/registry_types.h"

MPE_BEGIN

// Bytes of an element.
constexpr MPE_HD int64_t output_bytes(int32_t format) { return format == MPE_format_fp32 ? 4 : 2; }

class OutputRows {
 public:
  OutputRows() = default;
  // Of table t.
  MPE_HD OutputRows(const mpe_outputs& outputs, const mpe_table& table, int64_t t) {
    bytes_ = output_bytes(outputs.format);
    const bool apart = outputs.tables != nullptr;
    const mpe_matrix matrix = apart ? outputs.tables[t] : outputs.shared;
    data_ = static_cast<uint8_t*>(matrix.data) + (apart ? 0 : table.column * bytes_);
    stride_ = matrix.stride * bytes_;
  }

  MPE_HD uint8_t* row(int64_t i) const { return data_ + i * stride_; }
  MPE_HD uint8_t* at(int64_t i, int64_t c) const { return row(i) + c * bytes_; }

 private:
  uint8_t* data_;
  int64_t stride_, bytes_;
};

MPE_END
