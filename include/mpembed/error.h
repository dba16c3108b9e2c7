// What is wrong with a batch, out of what its checks found.
#pragma once

#include "mpembed/api.h"
#include "mpembed/macros.h"

MPE_BEGIN

// The errors of one batch: that of its offsets if it is set, else the index out of range with the
// smallest position, counted over all groups.
MPE_HD mpe_error first_error(const mpe_error* errors, int32_t n) {
  mpe_error found = MPE_NO_ERROR;
  for (int32_t i = 0; i < n; ++i) {
    if (errors[i].status == MPE_OK) continue;
    if (errors[i].status == MPE_ERR_OFFSETS) return errors[i];
    const int64_t count = found.count + errors[i].count;
    if (errors[i].position < found.position) found = errors[i];
    found.count = count;
  }
  return found;
}

MPE_END
