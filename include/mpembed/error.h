// What is wrong with a batch, out of what its checks found.
#pragma once

#include "mpembed/api.h"
#include "mpembed/macros.h"

MPE_BEGIN

// The errors of one batch, of its offsets before those of its indices: that with the smallest
// position, an index out of range counted over all groups.
MPE_HD mpe_error first_error(const mpe_error* errors, int32_t n) {
  mpe_error found = MPE_NO_ERROR;
  for (int32_t i = 0; i < n; ++i) {
    const mpe_error& one = errors[i];
    const bool offsets = one.status == MPE_ERR_OFFSETS;
    if (one.status == MPE_OK || (found.status == MPE_ERR_OFFSETS && !offsets)) continue;
    if (offsets && found.status == MPE_ERR_INDEX) found = mpe_error MPE_NO_ERROR;
    const int64_t count = offsets ? 1 : found.count + one.count;
    if (one.position < found.position) found = one;
    found.count = count;
  }
  return found;
}

MPE_END
