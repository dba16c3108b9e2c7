// One update of a table without lookups, for test_state_formats.py: what the backend says of the
// format of one of the optimizer's states. Nothing else is read but the count of unique rows, which
// is zero.
#include "mpembed/api.h"

extern "C" int32_t update_status(const mpe_backend* backend, int32_t optimizer, int32_t state,
                                 int32_t format) {
  mpe_table table{};
  table.num_rows = 1;
  table.precision = MPE_format_fp32;
  table.states[state].format = format;
  void* count = nullptr;
  if (backend->allocate(sizeof(int64_t), MPE_PLACEMENT_DEVICE, &count) != MPE_OK) return -1;
  if (backend->fill(count, 0, sizeof(int64_t), nullptr) != MPE_OK) return -1;
  mpe_optimizer settings{};
  settings.kind = optimizer;
  mpe_group group{};
  group.tables = &table;
  group.optimizer = &settings;
  group.num_tables = 1;
  group.dim = 8;
  mpe_lookups lookups{};
  mpe_unique unique{};
  unique.count = static_cast<int64_t*>(count);
  const mpe_outputs grad{};
  const mpe_gradient gradient{&lookups, &grad};
  const mpe_status status =
      backend->update(&group, &gradient, 1, &unique, nullptr, nullptr, nullptr, nullptr, nullptr);
  if (backend->synchronize(nullptr) != MPE_OK) return -1;
  backend->release(count, MPE_PLACEMENT_DEVICE);
  return status;
}
