// What a group's optimizer keeps for a row: its states by shape, and their formats in the tables.
#pragma once

#include "mpembed/api_types.h"
#include "mpembed/registry_types.h"
#include "own_optimizer.h"

MPE_BEGIN

// The numbers of an optimizer's states of a value an element, and of those of a value a row.
struct StateShapes {
  int num_elements = 0, num_values = 0;
  int element[MPE_MAX_STATES] = {}, value[MPE_MAX_STATES] = {};

  // FP32 values of a cache slot, in mpe_cache.rows and in mpe_cache.values.
  int64_t slot_floats(int64_t dim) const { return dim * (1 + num_elements); }
  int64_t slot_values() const { return num_values; }

  void add(int number, int32_t shape) {
    if (shape == MPE_STATE_ELEMENT) {
      element[num_elements++] = number;
    } else {
      value[num_values++] = number;
    }
  }
};

// optimizer: its kind, or -1 for frozen tables.
inline StateShapes state_shapes(int32_t optimizer) {
  StateShapes shapes;
  if (optimizer < 0) return shapes;
  if (const mpe_own_optimizer* own = own_optimizer(optimizer)) {
    for (int i = 0; i < own->num_states; ++i) shapes.add(i, own->state_shapes[i]);
    return shapes;
  }
  with_optimizer(optimizer, [&](auto kind) {
    using Optimizer = decltype(kind);
    if constexpr (Optimizer::kNumStates > 0) {
      for (int i = 0; i < Optimizer::kNumStates; ++i) shapes.add(i, Optimizer::kStates[i].shape);
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
