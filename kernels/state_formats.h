// What a group's optimizer keeps for a row: its states by shape, the formats in the tables, and the
// dispatch on those.
#pragma once

#include "mpembed/api_types.h"
#include "mpembed/registry_types.h"

MPE_BEGIN

// Calls function with an object of the format's empty type, as with_format does. The id must be one
// of MPE_STATE_FORMATS: see check_state_formats.
#define MPE_CASE(number, name, type) \
  if (id == number) return function(type{});

#if defined(__CUDACC__)
#pragma nv_exec_check_disable  // the function may be for the host alone
#endif
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

// The numbers of an optimizer's states of a value an element, and of those of a value a row.
struct StateShapes {
  int num_elements = 0, num_values = 0;
  int element[MPE_MAX_STATES] = {}, value[MPE_MAX_STATES] = {};

  // FP32 values of a cache slot, in mpe_cache.rows and in mpe_cache.values.
  int64_t slot_floats(int64_t dim) const { return dim * (1 + num_elements); }
  int64_t slot_values() const { return num_values; }
};

// optimizer: its kind, or -1 for frozen tables.
inline StateShapes state_shapes(int32_t optimizer) {
  StateShapes shapes;
  if (optimizer < 0) return shapes;
  with_optimizer(optimizer, [&](auto kind) {
    using Optimizer = decltype(kind);
    if constexpr (Optimizer::kNumStates > 0) {
      for (int i = 0; i < Optimizer::kNumStates; ++i) {
        if (Optimizer::kStates[i].shape == kStateElement) {
          shapes.element[shapes.num_elements++] = i;
        } else {
          shapes.value[shapes.num_values++] = i;
        }
      }
    }
  });
  return shapes;
}
inline StateShapes state_shapes(const mpe_group& group) {
  return state_shapes(group.optimizer == nullptr ? -1 : group.optimizer->kind);
}

// MPE_ERR_VALUE if the format of a table's state is not one of MPE_STATE_FORMATS.
inline mpe_status check_state_formats(const mpe_group& group) {
  const StateShapes shapes = state_shapes(group);
  for (int32_t t = 0; t < group.num_tables; ++t) {
    for (int i = 0; i < shapes.num_elements + shapes.num_values; ++i) {
      if (!is_state_format(group.tables[t].states[i].format)) return MPE_ERR_VALUE;
    }
  }
  return MPE_OK;
}

MPE_END
