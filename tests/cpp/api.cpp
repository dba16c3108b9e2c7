// The library behind the C interface: its versions, answers, errors and a row there and back.
#include "mpembed/api.h"

#include <cmath>
#include <cstring>
#include <vector>

#include "check.h"

CASE(api_backend) {
  const mpe_backend* cpu = mpe_cpu_backend();
  CHECK(cpu->api_version == MPE_API_VERSION);
  CHECK(std::strcmp(cpu->name, "cpu") == 0 && cpu == mpe_cpu_backend());
  int32_t count = 0;
  CHECK(cpu->device_count(&count) == MPE_OK && count == 1);
  mpe_device device;
  CHECK(cpu->describe(0, &device) == MPE_OK && std::strcmp(device.name, "CPU") == 0);
  CHECK(cpu->describe(1, &device) == MPE_ERR_DEVICE && cpu->use_device(1) == MPE_ERR_DEVICE);
  CHECK(cpu->last_error() != nullptr);
}

CASE(api_answers) {
  CHECK(mpe_row_bytes(MPE_format_int4, 9) == 9 && mpe_code_bytes(MPE_format_int4, 9) == 5);
  CHECK(mpe_row_bytes(-1, 9) == -1 && mpe_row_bytes(MPE_NUM_FORMATS, 9) == -1);
  CHECK(!mpe_policy_has_sketch(MPE_policy_lru) && mpe_policy_has_sketch(MPE_policy_lfu));
}

CASE(api_what_an_optimizer_keeps) {
  const int32_t kind = MPE_optimizer_rowwise_adam;
  CHECK(mpe_num_states(kind) == 2);
  CHECK(std::strcmp(mpe_state_name(kind, 0), "exp_avg") == 0);
  CHECK(std::strcmp(mpe_state_name(kind, 1), "exp_avg_sq") == 0);
  CHECK(mpe_state_shape(kind, 0) == MPE_STATE_ELEMENT && mpe_state_shape(kind, 1) == MPE_STATE_ROW);
  CHECK(mpe_slot_floats(kind, 5) == 10 && mpe_slot_values(kind) == 1);
  CHECK(mpe_slot_floats(-1, 5) == 5 && mpe_slot_values(-1) == 0);
  for (int32_t optimizer = 0; optimizer < MPE_NUM_OPTIMIZERS; ++optimizer) {
    const int32_t states = mpe_num_states(optimizer);
    CHECK(states >= 0 && states <= MPE_MAX_STATES);
    int64_t elements = 0;
    for (int32_t i = 0; i < states; ++i) {
      elements += mpe_state_shape(optimizer, i) == MPE_STATE_ELEMENT ? 1 : 0;
      CHECK(std::strlen(mpe_state_name(optimizer, i)) > 0);
      CHECK(std::isfinite(mpe_state_initial(optimizer, i)));
    }
    CHECK(mpe_state_name(optimizer, states) == nullptr && mpe_state_shape(optimizer, states) == 0);
    CHECK(mpe_slot_floats(optimizer, 3) == 3 * (1 + elements));
    CHECK(mpe_slot_values(optimizer) == states - elements);
  }
  CHECK(mpe_num_states(-1) == 0 && mpe_num_states(MPE_NUM_OPTIMIZERS) == 0);
}

CASE(api_parameters_have_names) {
  for (int32_t optimizer = 0; optimizer < MPE_NUM_OPTIMIZERS; ++optimizer) {
    CHECK(std::strcmp(mpe_parameter_name(optimizer, 0), "lr") == 0);
    CHECK(std::strcmp(mpe_parameter_name(optimizer, 1), "weight_decay") == 0);
    int32_t n = 2;
    while (mpe_parameter_name(optimizer, n) != nullptr) ++n;
    CHECK(n <= MPE_MAX_PARAMETERS);
  }
  CHECK(std::strcmp(mpe_parameter_name(MPE_optimizer_adam, 3), "beta2") == 0);
  CHECK(mpe_parameter_name(MPE_optimizer_sgd, 2) == nullptr);
  CHECK(mpe_parameter_name(-1, 0) == nullptr && mpe_parameter_name(0, -1) == nullptr);
}

CASE(api_an_update_begins_with_the_coefficients_of_all_tables) {
  mpe_parameters tables[3] = {{MPE_optimizer_sgd, MPE_decay_none, {0.5}},
                              {-1, MPE_decay_none, {7.0}},
                              {MPE_optimizer_adagrad, MPE_decay_l2, {0.5, 0.25, 0.0, 1.0}}};
  uint64_t updates = 2;
  std::vector<float> c(3 * MPE_MAX_COEFFICIENTS, -1.0f);
  CHECK(mpe_cpu_backend()->begin_update(nullptr, tables, 3, &updates, c.data(), nullptr) == MPE_OK);
  CHECK(updates == 3 && c[1] == 0.5f);
  for (int i = 0; i < MPE_MAX_COEFFICIENTS; ++i) CHECK(c[MPE_MAX_COEFFICIENTS + i] == -1.0f);
  const float* adagrad = c.data() + 2 * MPE_MAX_COEFFICIENTS;
  CHECK(adagrad[0] == 0.25f && adagrad[1] == 0.5f / 3.0f);  // the third update: 1 + 2 * lr_decay
}

CASE(api_threads) {
  const int32_t before = mpe_get_num_threads();
  CHECK(before >= 1);
  mpe_set_num_threads(3);
  CHECK(mpe_get_num_threads() == 3);
  mpe_set_num_threads(-5);
  CHECK(mpe_get_num_threads() == 1);
  mpe_set_num_threads(1 << 20);
  CHECK(mpe_get_num_threads() == 1024);
  mpe_set_num_threads(before);
}

CASE(api_errors_are_found_before_anything_changes) {
  const mpe_backend* cpu = mpe_cpu_backend();
  const int32_t indices[3] = {0, 9, 1}, offsets[3] = {0, 1, 3}, wrong[3] = {0, 2, 1};
  mpe_batch batch{indices, wrong, nullptr, 3, 1, 2, 32, 32};
  mpe_error error;
  CHECK(cpu->check_offsets(&batch, nullptr, &error) == MPE_ERR_OFFSETS);
  CHECK(error.position == 2 && error.value == 1);
  batch.offsets = offsets;
  CHECK(cpu->check_offsets(&batch, nullptr, &error) == MPE_OK && error.status == MPE_OK);
  mpe_table table{};
  table.num_rows = 5;
  table.table_id = 6;
  table.feature = 1;
  mpe_group group{};
  group.tables = &table;
  group.num_tables = group.dim = 1;
  uint64_t keys[3];
  int32_t bags[3];
  int64_t bag_offsets[3], origins[1], dropped[1];
  mpe_lookups lookups{2, 1, keys, bags, bag_offsets, origins, dropped, nullptr};
  CHECK(cpu->prepare(&group, &batch, 0, &lookups, nullptr, &error) == MPE_ERR_INDEX);
  CHECK(error.table == 1 && error.position == 1 && error.value == 9 && error.count == 1);
  CHECK(cpu->prepare(&group, &batch, 1, &lookups, nullptr, &error) == MPE_OK);
  CHECK(keys[0] == MPE_DROPPED && dropped[0] == 1 && keys[1] == 1 && bags[1] == 0);
}

CASE(api_a_table_without_rows_has_no_valid_index) {
  const mpe_backend* cpu = mpe_cpu_backend();
  const int64_t indices[1] = {0}, offsets[2] = {0, 1};
  const mpe_batch batch{indices, offsets, nullptr, 1, 1, 1, 64, 64};
  mpe_table table{};
  mpe_group group{};
  group.tables = &table;
  group.num_tables = group.dim = 1;
  uint64_t keys[1], rows[1];
  int32_t bags[1], positions[1];
  int64_t bag_offsets[2], origins[1], dropped[1], count = -1, starts[2];
  mpe_lookups lookups{1, 1, keys, bags, bag_offsets, origins, dropped, nullptr};
  mpe_unique unique{&count, rows, starts, positions};
  mpe_error error = MPE_NO_ERROR;
  CHECK(cpu->prepare(&group, &batch, 0, &lookups, nullptr, &error) == MPE_ERR_INDEX);
  CHECK(error.count == 1 && error.value == 0);
  error = MPE_NO_ERROR;
  CHECK(cpu->prepare(&group, &batch, 1, &lookups, nullptr, &error) == MPE_OK);
  CHECK(keys[0] == MPE_DROPPED && dropped[0] == 1);
  CHECK(cpu->dedup(keys, 1, 0, &unique, nullptr) == MPE_OK && count == 0);
}

CASE(api_a_table_without_statistics_leaves_the_next_ones_right) {
  const mpe_backend* cpu = mpe_cpu_backend();
  int64_t stats[MPE_NUM_STATS] = {};
  mpe_table tables[2] = {};
  tables[0].num_rows = tables[1].num_rows = tables[1].base = 5;
  tables[1].stats = stats;
  mpe_group group{};
  group.tables = tables;
  group.num_tables = 2;
  group.dim = 1;
  uint64_t rows[5] = {0, 1, 4, 6, 9};  // three of the first table, two of the second
  int64_t count = 5, bag_offsets[3] = {0, 3, 5}, dropped[2] = {0, 0};
  mpe_lookups lookups{5, 1, nullptr, nullptr, bag_offsets, nullptr, dropped, nullptr};
  const mpe_unique unique{&count, rows, nullptr, nullptr};
  CHECK(cpu->count(&group, &lookups, &unique, 1, 1, nullptr) == MPE_OK);
  CHECK(stats[MPE_stat_unique] == 2 && stats[MPE_stat_accesses] == 2);
}

CASE(api_a_row_there_and_back) {
  const mpe_backend* cpu = mpe_cpu_backend();
  const std::vector<float> x{0.0f, 15.0f, 5.0f, 3.0f, 9.0f, 12.0f};  // two rows of whole steps
  std::vector<uint8_t> rows(2 * static_cast<size_t>(mpe_row_bytes(MPE_format_int4, 3)));
  std::vector<float> y(6);
  mpe_error error;
  CHECK(cpu->check_values(x.data(), 2, 3, MPE_format_int4, nullptr, &error) == MPE_OK);
  CHECK(cpu->quantize(x.data(), 2, 3, MPE_format_int4, MPE_rounding_nearest, 0, 0, rows.data(),
                      nullptr) == MPE_OK);
  CHECK(cpu->dequantize(rows.data(), 2, 3, MPE_format_int4, y.data(), nullptr) == MPE_OK);
  CHECK(y[0] == 0.0f && y[1] == 15.0f && y[2] == 5.0f && y[3] == 3.0f && y[5] >= 11.99f);
  const float infinite[1] = {HUGE_VALF};
  CHECK(cpu->check_values(infinite, 1, 1, MPE_format_int4, nullptr, &error) == MPE_ERR_VALUE);
  CHECK(error.position == 0 && error.count == 1);
}
