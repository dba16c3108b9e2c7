// A collection of one group on a backend: tables, states, cache, and how the tables are trained.
#pragma once

#include <random>

#include "replica.h"

namespace replicas {

struct Options {
  uint64_t seed;
  int32_t dim, steps;
  int32_t optimizer;  // or -1: frozen tables
  int32_t policy;     // or -1: no cache
  int32_t batch_size, longest, rows, sets, rounding, decay, drop;
  int32_t state_format, second_state_format, copies;
  int32_t format;   // of all tables, or -1: one table each
  int32_t batches;  // that one update sums up
  int32_t empty;    // the table that has no rows, or -1
  // How a row and its states lie, on either replica: as arrays of their own where 0; else side by
  // side, each at a multiple of so many bytes.
  int32_t layout, other_layout;
};

constexpr float kInitialState = 0.25f;
constexpr uint8_t kPadding = 0xA5;

// A table's rows, or one of its states.
struct Field {
  int64_t offset, bytes, stride;  // of the first row in the table's memory; of a row
  uint8_t* data;
};

// A group of one table a format and pooling (and copy), and its cache.
struct Collection {
  Replica replica;
  std::vector<mpe_table> tables;
  std::vector<mpe_parameters> host_parameters;
  mpe_cache cache{};
  mpe_optimizer optimizer{};
  mpe_group group{};
  mpe_parameters* parameters;
  float* coefficients;
  uint64_t *step, *updates;
  mpe_error *sink, *nonfinite;

  Collection(const mpe_backend* backend, const Options& o, int32_t layout) : replica(backend) {
    int64_t base = 0, column = 0;
    const int32_t formats = o.format < 0 ? MPE_NUM_FORMATS : 1;
    for (int32_t i = 0; i < formats * MPE_NUM_POOLINGS * o.copies; ++i) {
      mpe_table t{};
      t.precision = o.format < 0 ? i % formats : o.format;
      t.pooling = i / formats % MPE_NUM_POOLINGS;
      t.num_rows = i == o.empty ? 0 : o.rows + i % 21;
      t.base = base;
      t.first_row = i % 3 * int64_t{3'000'000'019};
      t.table_id = t.feature = i;
      t.column = column;
      make_rows(o, layout, &t);
      t.stats = replica.make<int64_t>(MPE_NUM_STATS);
      t.noise = replica.make<int64_t>(MPE_NUM_NOISE_SUMS);
      tables.push_back(t);
      host_parameters.push_back(parameters_of(o, i));
      base += t.num_rows;
      column += o.dim;
    }
    step = replica.make<uint64_t>(1);
    updates = replica.make<uint64_t>(1);
    sink = replica.make<mpe_error>(1, &kNoError);
    nonfinite = replica.make<mpe_error>(1, &kNoError);
    const int64_t n = static_cast<int64_t>(tables.size());
    parameters = replica.make<mpe_parameters>(n, host_parameters.data());
    coefficients = replica.make<float>(n * MPE_MAX_COEFFICIENTS);
    optimizer = mpe_optimizer{o.optimizer, o.decay, coefficients, nullptr, nullptr};
    if (o.policy >= 0) cache = make_cache(replica, o.optimizer, o.policy, o.sets, o.dim);
    make_group(o);
  }

  int64_t slots() const { return cache.num_sets * cache.ways; }
  int64_t slot_floats() const { return mpe_slot_floats(optimizer.kind, group.dim); }
  int64_t slot_values() const { return mpe_slot_values(optimizer.kind); }
  int64_t width() const { return static_cast<int64_t>(group.num_tables) * group.dim; }
  int64_t total_rows() const { return tables.back().base + tables.back().num_rows; }
  size_t num_fields() const { return fields_[0].size(); }

  // The bytes of a table's rows (field 0) or of one of its states, without what lies between.
  std::vector<uint8_t> read_field(size_t table, size_t field) {
    const Field& f = fields_[table][field];
    const int64_t rows = tables[table].num_rows;
    std::vector<uint8_t> all;
    if (rows == 0) return all;
    const std::vector<uint8_t> span = replica.read(f.data, (rows - 1) * f.stride + f.bytes);
    for (int64_t r = 0; r < rows; ++r) {
      const auto row = span.begin() + r * f.stride;
      all.insert(all.end(), row, row + f.bytes);
    }
    return all;
  }

  // Overwrites the memory of all tables; and reports where it has been written to since.
  void overwrite_rows() {
    for (const auto& [memory, bytes] : memory_) {
      replica.check(replica.b->fill(memory, kPadding, bytes, nullptr), "fill");
    }
    replica.check(replica.b->synchronize(nullptr), "synchronize");
  }
  void check_overwritten() {
    for (size_t t = 0; t < tables.size(); ++t) {
      for (const uint8_t byte : replica.read(memory_[t].first, memory_[t].second)) {
        if (byte == kPadding) continue;
        g_report += "table " + std::to_string(t) + " was written to\n";
        break;
      }
    }
  }

  // Reports bytes between rows and states that were written to.
  void check_padding() {
    for (size_t t = 0; t < tables.size(); ++t) {
      std::vector<uint8_t> memory = replica.read(memory_[t].first, memory_[t].second);
      for (const Field& f : fields_[t]) {
        for (int64_t r = 0; r < tables[t].num_rows; ++r) {
          std::fill_n(memory.begin() + f.offset + r * f.stride, f.bytes, kPadding);
        }
      }
      for (const uint8_t byte : memory) {
        if (byte == kPadding) continue;
        g_report += "the padding of table " + std::to_string(t) + " was written to\n";
        break;
      }
    }
  }

 private:
  // Lays out a table's rows and states in one piece of memory.
  void make_rows(const Options& o, int32_t layout, mpe_table* t) {
    std::vector<Field> fields{{0, mpe_row_bytes(t->precision, o.dim), 0, nullptr}};
    for (int32_t i = 0; i < mpe_num_states(o.optimizer); ++i) {
      t->states[i].format = i == 0 ? o.state_format : o.second_state_format;
      const int64_t values = mpe_state_shape(o.optimizer, i) == MPE_STATE_ELEMENT ? o.dim : 1;
      fields.push_back({0, values * value_bytes(t->states[i].format), 0, nullptr});
    }
    const int64_t unit = layout == 0 ? 64 : layout;
    int64_t end = 0;
    for (Field& f : fields) {
      f.offset = (end + unit - 1) / unit * unit;
      end = f.offset + f.bytes * (layout == 0 ? t->num_rows : 1);
    }
    const int64_t record = (end + unit - 1) / unit * unit;
    for (Field& f : fields) f.stride = layout == 0 ? f.bytes : record;
    const int64_t bytes = layout == 0 ? record : record * t->num_rows;
    std::vector<uint8_t> image(static_cast<size_t>(bytes), kPadding);
    for (size_t i = 0; i < fields.size(); ++i) {
      for (int64_t r = 0; r < t->num_rows; ++r) {
        uint8_t* row = image.data() + fields[i].offset + r * fields[i].stride;
        if (i == 0) std::fill_n(row, fields[i].bytes, 0);
        if (i > 0) fill_state(t->states[i - 1].format, fields[i].bytes, row);
      }
    }
    uint8_t* memory = replica.make<uint8_t>(bytes, image.data());
    for (Field& f : fields) f.data = memory + f.offset;
    t->rows = fields[0].data;
    t->row_stride = fields[0].stride;
    for (size_t i = 1; i < fields.size(); ++i) {
      t->states[i - 1].data = fields[i].data;
      t->states[i - 1].stride = fields[i].stride;
    }
    fields_.push_back(fields);
    memory_.push_back({memory, bytes});
  }

  static int64_t value_bytes(int32_t format) { return format == MPE_format_fp32 ? 4 : 2; }

  static void fill_state(int32_t format, int64_t bytes, uint8_t* row) {
    uint8_t value[4];
    memcpy(value, &kInitialState, 4);  // its upper half is the same value in BF16
    const int64_t each = value_bytes(format);
    for (int64_t b = 0; b < bytes; ++b) row[b] = value[4 - each + b % each];
  }

  static mpe_parameters parameters_of(const Options& o, int32_t table) {
    mpe_parameters p{o.optimizer, o.decay, {0.05 + 0.01 * (table % 3), 0.01}};
    const double shift = table % 2 == 0 ? 0.0 : 0.01;  // some tables have their own
    const struct {
      const char* name;
      double value;
    } own[] = {{"eps", 1e-8},  {"lr_decay", 0.1}, {"momentum", 0.9},
               {"beta1", 0.9}, {"beta2", 0.98},   {"lr_power", -0.5},
               {"l1", 0.02},   {"l2", 0.01},      {"beta", 0.125}};
    for (int32_t i = 2; mpe_parameter_name(o.optimizer, i) != nullptr; ++i) {
      for (const auto& known : own) {
        if (std::string(known.name) == mpe_parameter_name(o.optimizer, i)) {
          p.values[i] = known.value + shift;
        }
      }
    }
    return p;
  }

  void make_group(const Options& o) {
    group.tables = tables.data();
    group.device_tables =
        replica.make<mpe_table>(static_cast<int64_t>(tables.size()), tables.data());
    group.cache = o.policy >= 0 ? &cache : nullptr;
    group.optimizer = o.optimizer >= 0 ? &optimizer : nullptr;
    group.step = step;
    group.seed = o.seed;
    group.num_tables = static_cast<int32_t>(tables.size());
    group.dim = o.dim;
    group.rounding = o.rounding;
    for (int32_t t = 0; t < group.num_tables; ++t) {
      const int32_t kind = t % MPE_NUM_INITS;
      replica.check(replica.b->init_rows(&group, t, kind, kind == MPE_init_normal ? 0.3f : -0.5f,
                                         0.7f, nullptr),
                    "init_rows");
    }
  }

  std::vector<std::vector<Field>> fields_;
  std::vector<std::pair<uint8_t*, int64_t>> memory_;
};

}  // namespace replicas
