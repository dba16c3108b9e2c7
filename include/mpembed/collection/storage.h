// All arrays of a Collection, and the structs of the C API that point into them.
#ifndef MPEMBED_COLLECTION_STORAGE_H
#define MPEMBED_COLLECTION_STORAGE_H

#include <deque>
#include <tuple>

#include "mpembed/collection/optimizers.h"
#include "mpembed/collection/records.h"
#include "mpembed/step.h"

namespace mpembed::detail {

// Tables that share a cache.
struct GroupPlan {
  std::vector<int32_t> tables;                 // their places in the collection
  const OptimizerConfig* optimizer = nullptr;  // of the first; NULL: frozen
  int64_t num_sets = 0;                        // of the cache; 0 if there is none
};

// Groups by dimension, then optimizer (frozen tables last), then decay mode, as Python makes them.
// A frozen table has a cache only where its rows lie across a bus.
inline std::vector<GroupPlan> plan_groups(const std::vector<TableConfig>& tables,
                                          const CollectionOptions& options) {
  std::map<std::tuple<int32_t, int32_t, int32_t, bool>, GroupPlan> found;
  for (size_t t = 0; t < tables.size(); ++t) {
    const OptimizerConfig* optimizer = optimizer_of(tables[t], options);
    const bool cached = options.cache.has_value() &&
                        (optimizer != nullptr || tables[t].placement == MPE_PLACEMENT_HOST);
    const int32_t kind = optimizer == nullptr ? MPE_NUM_OPTIMIZERS : optimizer->kind;
    const int32_t mode = optimizer == nullptr ? 0 : optimizer->decay_mode;
    GroupPlan& plan = found[{tables[t].dim, kind, mode, cached}];
    if (plan.tables.empty()) plan.optimizer = optimizer;
    plan.tables.push_back(static_cast<int32_t>(t));
    plan.num_sets = cached ? 1 : 0;
  }
  std::vector<GroupPlan> plans;
  for (auto& [key, plan] : found) {
    int64_t rows = 0;
    for (const int32_t t : plan.tables) rows += tables[static_cast<size_t>(t)].num_rows;
    if (plan.num_sets > 0) plan.num_sets = sets_for(*options.cache, rows);
    plans.push_back(plan);
  }
  return plans;
}

// The arrays of a cache.
struct CacheStorage {
  Array<uint64_t> tags;
  Array<uint32_t> meta;
  Array<float> rows, values;
  Array<uint64_t> counters;
  Array<uint8_t> sketch;
  mpe_cache fields{};

  CacheStorage(const Device& device, const CacheConfig& config, const GroupPlan& plan,
               int32_t dim) {
    const int64_t slots = plan.num_sets * config.ways;
    const int32_t kind = plan.optimizer == nullptr ? -1 : plan.optimizer->kind;
    tags = Array<uint64_t>(
        device, std::vector<uint64_t>(static_cast<size_t>(slots), uint64_t{MPE_EMPTY_TAG}));
    meta = Array<uint32_t>(device, slots);
    rows = Array<float>(device, slots * mpe_slot_floats(kind, dim));
    if (mpe_slot_values(kind) > 0) values = Array<float>(device, slots * mpe_slot_values(kind));
    counters = Array<uint64_t>(device, 2);
    int64_t width = 1;
    while (width < slots) width *= 2;
    if (mpe_policy_has_sketch(config.policy) != 0) {
      sketch = Array<uint8_t>(device, MPE_SKETCH_ROWS * width);
    }
    fields = mpe_cache{tags.data(),   meta.data(),     rows.data(), values.data(),
                       sketch.data(), counters.data(), nullptr,     nullptr,
                       plan.num_sets, width,           config.ways, config.policy};
  }
};

struct GroupStorage {
  std::vector<mpe_table> tables;
  Array<mpe_table> device_tables;
  std::optional<CacheStorage> cache;
  mpe_optimizer optimizer{};
};

// Everything lies where the collection's functions expect it, and is never moved.
class Storage {
 public:
  Storage(const Device& device, const std::vector<TableConfig>& tables,
          const CollectionOptions& options, const std::vector<GroupPlan>& plans)
      : device_(device),
        configs_(tables),
        stats_(device, static_cast<int64_t>(tables.size()) * MPE_NUM_STATS),
        noise_(device, static_cast<int64_t>(tables.size()) * MPE_NUM_NOISE_SUMS),
        counts_(device, 2),
        coefficients_(device, static_cast<int64_t>(tables.size()) * MPE_MAX_COEFFICIENTS),
        errors_(device, std::vector<mpe_error>(1 + plans.size(), mpe_error MPE_NO_ERROR)),
        order_(tables.size()) {
    for (const TableConfig& table : tables) {
      const OptimizerConfig* optimizer = optimizer_of(table, options);
      const auto states =
          optimizer == nullptr ? std::vector<StateConfig>() : states_of(*optimizer, table.dim);
      records_.emplace_back(device, table, states);
      columns_.push_back(width_);
      width_ += table.dim;
    }
    for (const GroupPlan& plan : plans) add_group(plan, options);
    parameters_ = Array<mpe_parameters>(device, host_parameters_);
    collection_.backend = &device.backend();
    collection_.groups = groups_.data();
    collection_.step = counts_.data();
    collection_.updates = counts_.data() + 1;
    collection_.parameters = parameters_.data();
    collection_.coefficients = coefficients_.data();
    collection_.errors = errors_.data();
    collection_.num_groups = static_cast<int32_t>(groups_.size());
    collection_.drop = options.drop ? 1 : 0;
  }
  Storage(const Storage&) = delete;
  Storage& operator=(const Storage&) = delete;

  mpe_collection* collection() { return &collection_; }
  const std::vector<TableConfig>& configs() const { return configs_; }
  GroupStorage& group(size_t g) { return group_storage_[g]; }
  const mpe_group& fields(size_t g) const { return groups_[g]; }
  Records& records(size_t table) { return records_[table]; }
  const Array<int64_t>& stats() const { return stats_; }
  const Array<int64_t>& noise() const { return noise_; }
  Array<uint64_t>& counts() { return counts_; }
  int64_t width() const { return width_; }

  // A table's group, and its place there.
  struct Place {
    size_t group, place, number;  // number: among the parameters
  };
  const Place& place(size_t table) const { return order_[table]; }

  // Changes the parameters of a table from its next update on.
  void set_parameter(size_t table, int32_t parameter, double value) {
    const int64_t number = static_cast<int64_t>(order_[table].number);
    mpe_parameters& mine = host_parameters_[order_[table].number];
    mine.values[parameter] = value;
    parameters_.write(number, &mine, 1);
  }

 private:
  void add_group(const GroupPlan& plan, const CollectionOptions& options) {
    const TableConfig& first = configs_[static_cast<size_t>(plan.tables[0])];
    GroupStorage& made = group_storage_.emplace_back();
    mpe_group group{};
    if (plan.optimizer != nullptr) {
      made.optimizer =
          mpe_optimizer{plan.optimizer->kind, plan.optimizer->decay_mode,
                        coefficients_.data() +
                            static_cast<int64_t>(host_parameters_.size()) * MPE_MAX_COEFFICIENTS,
                        nullptr, nullptr};
      group.optimizer = &made.optimizer;
    }
    for (const int32_t t : plan.tables) add_table(static_cast<size_t>(t), options, &made.tables);
    if (!device_.is_cpu()) made.device_tables = Array<mpe_table>(device_, made.tables);
    if (plan.num_sets > 0) {
      made.cache.emplace(device_, *options.cache, plan, first.dim);
      group.cache = &made.cache->fields;
    }
    group.tables = made.tables.data();
    group.device_tables = made.device_tables.data();
    group.step = counts_.data();
    group.seed = options.seed;
    group.num_tables = static_cast<int32_t>(made.tables.size());
    group.dim = first.dim;
    group.rounding = options.rounding;
    groups_.push_back(group);
  }

  void add_table(size_t t, const CollectionOptions& options, std::vector<mpe_table>* tables) {
    const TableConfig& config = configs_[t];
    const OptimizerConfig* optimizer = optimizer_of(config, options);
    mpe_table table{};
    table.rows = records_[t].field(0);
    table.row_stride = records_[t].stride(0);
    if (optimizer != nullptr) {
      const std::vector<StateConfig> states = states_of(*optimizer, config.dim);
      for (size_t i = 0; i < states.size(); ++i) {
        table.states[i] =
            mpe_state{records_[t].field(i + 1), records_[t].stride(i + 1), states[i].format};
      }
    }
    table.stats = stats_.data() + static_cast<int64_t>(t) * MPE_NUM_STATS;
    table.noise = noise_.data() + static_cast<int64_t>(t) * MPE_NUM_NOISE_SUMS;
    table.num_rows = config.num_rows;
    if (!tables->empty()) table.base = tables->back().base + tables->back().num_rows;
    table.first_row = config.first_row;
    table.precision = config.precision;
    table.table_id = config.table_id < 0 ? static_cast<int32_t>(t) : config.table_id;
    table.pooling = config.pooling;
    table.feature = static_cast<int32_t>(t);
    table.placement = config.placement;
    table.column = columns_[t];
    order_[t] = Place{group_storage_.size() - 1, tables->size(), host_parameters_.size()};
    tables->push_back(table);
    host_parameters_.push_back(optimizer == nullptr ? mpe_parameters{-1, 0, {}}
                                                    : parameters_of(*optimizer, owner_of(config)));
  }

  const Device& device_;
  const std::vector<TableConfig> configs_;
  std::vector<Records> records_;
  Array<int64_t> stats_, noise_;
  Array<uint64_t> counts_;  // the write step, and the updates
  Array<float> coefficients_;
  Array<mpe_error> errors_;
  Array<mpe_parameters> parameters_;
  std::vector<mpe_parameters> host_parameters_;
  std::vector<int64_t> columns_;
  int64_t width_ = 0;
  std::vector<Place> order_;
  std::deque<GroupStorage> group_storage_;  // which the groups point into
  std::vector<mpe_group> groups_;
  mpe_collection collection_{};
};

}  // namespace mpembed::detail

#endif
