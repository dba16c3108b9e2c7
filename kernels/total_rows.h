// The number of a group's rows.
#pragma once

#include "mpembed/api_types.h"
#include "mpembed/macros.h"

MPE_BEGIN

// Keys of lookups are below.
inline uint64_t total_rows(const mpe_group& group) {
  const mpe_table& last = group.tables[group.num_tables - 1];
  return static_cast<uint64_t>(last.base + last.num_rows);
}

MPE_END
