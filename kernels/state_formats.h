// The formats of element-wise optimizer states: a check for launchers and the dispatch behind it.
#pragma once

#include "mpembed/api_types.h"
#include "mpembed/registry_types.h"

MPE_BEGIN

// Calls function with an object of the format's empty type, as with_format does. The id must be one
// of MPE_STATE_FORMATS: see check_state_formats.
#define MPE_CASE(number, name, type) \
  if (id == number) return function(type{});

template <class Function>
MPE_HD auto with_state_format(int32_t id, Function function) {
  MPE_STATE_FORMATS(MPE_CASE)
  __builtin_unreachable();
}

#undef MPE_CASE

inline bool is_state_format(int32_t id) {
#define MPE_OR_EQUALS(number, name, type) || id == number
  return false MPE_STATE_FORMATS(MPE_OR_EQUALS);
#undef MPE_OR_EQUALS
}

// MPE_ERR_VALUE if the optimizer keeps a value per element and a table's state_format is not one of
// MPE_STATE_FORMATS.
inline mpe_status check_state_formats(const mpe_group& group, const mpe_optimizer& optimizer) {
  const StateShape shape =
      with_optimizer(optimizer.kind, [](auto kind) { return decltype(kind)::kState; });
  for (int32_t t = 0; shape == kStateElement && t < group.num_tables; ++t) {
    if (!is_state_format(group.tables[t].state_format)) return MPE_ERR_VALUE;
  }
  return MPE_OK;
}

MPE_END
