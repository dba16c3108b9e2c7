// A collection of several groups on a backend, with random settings; two of the same seed are
// alike. All of its state can be read at once.
#pragma once

#include <algorithm>
#include <memory>
#include <random>

#include "../replica.h"
#include "mpembed/step.h"

namespace step_tests {

using namespace replicas;

constexpr int32_t kGroups = 4, kTables = 6;

class World {
 public:
  World(const mpe_backend* backend, uint64_t seed, bool drop) : replica(backend), rng_(seed) {
    choose();
    step = replica.make<uint64_t>(1);
    updates = replica.make<uint64_t>(1);
    const std::vector<mpe_error> none(1 + kGroups, kNoError);
    errors = replica.make<mpe_error>(1 + kGroups, none.data());
    coefficients = replica.make<float>(kTables * MPE_MAX_COEFFICIENTS);
    for (int32_t g = 0; g < kGroups; ++g) make_group(g);
    c.backend = backend;
    c.groups = groups;
    c.step = step;
    c.updates = updates;
    c.parameters = replica.make<mpe_parameters>(kTables, parameters_.data());
    c.coefficients = coefficients;
    c.errors = errors;
    c.num_groups = kGroups;
    c.drop = drop;
  }

  // Bytes of everything that a step may change.
  std::vector<std::vector<uint8_t>> state() {
    std::vector<std::vector<uint8_t>> all;
    for (const auto& [data, bytes] : arrays_) {
      all.push_back(replica.read(static_cast<const uint8_t*>(data), bytes));
    }
    all.push_back(replica.read(reinterpret_cast<const uint8_t*>(step), 8));
    all.push_back(replica.read(reinterpret_cast<const uint8_t*>(updates), 8));
    all.push_back(replica.read(reinterpret_cast<const uint8_t*>(errors),
                               (1 + kGroups) * static_cast<int64_t>(sizeof(mpe_error))));
    return all;
  }
  std::vector<uint64_t> tags(int32_t g) {
    return replica.read(caches[g].tags, caches[g].num_sets * caches[g].ways);
  }
  int64_t total_rows(int32_t g) const {
    const mpe_table& last = groups[g].tables[groups[g].num_tables - 1];
    return last.base + last.num_rows;
  }
  const mpe_table& table(int32_t feature) const { return *by_feature_[feature]; }
  int32_t dim_of(int32_t feature) const { return dims_[feature]; }
  int64_t width() const { return width_; }
  bool unpooled() const { return unpooled_; }

  Replica replica;
  mpe_collection c{};
  mpe_group groups[kGroups]{};
  mpe_cache caches[kGroups]{};
  uint64_t *step, *updates;
  mpe_error* errors;
  float* coefficients;

 private:
  int32_t draw(int32_t n) { return static_cast<int32_t>(rng_() % static_cast<uint64_t>(n)); }

  void choose() {
    const int32_t dims[] = {1, 4, 16, 17, 40};
    group_dim_[0] = group_dim_[1] = dims[draw(5)];
    group_dim_[2] = group_dim_[3] = dims[draw(5)];
    kind_[0] = draw(MPE_NUM_OPTIMIZERS);
    kind_[1] = draw(MPE_NUM_OPTIMIZERS);
    kind_[2] = -1;
    kind_[3] = draw(MPE_NUM_OPTIMIZERS);
    const bool cached = draw(4) != 0;
    for (int32_t g = 0; g < kGroups; ++g) cached_[g] = g == 2 ? cached && draw(2) == 0 : cached;
    for (int32_t& decay : decay_) decay = draw(MPE_NUM_WEIGHT_DECAYS);
    policy_ = draw(MPE_NUM_POLICIES);
    unpooled_ = draw(2) == 0;
    const int32_t members[kTables] = {0, 0, 0, 1, 2, 3};
    std::copy(members, members + kTables, group_of_);
    for (int32_t f = kTables - 1; f > 0; --f) std::swap(group_of_[f], group_of_[draw(f + 1)]);
    for (int32_t f = 0; f < kTables; ++f) {
      dims_[f] = group_dim_[group_of_[f]];
      columns_[f] = width_;
      width_ += dims_[f];
    }
  }

  void make_group(int32_t g) {
    int64_t base = 0;
    for (int32_t f = 0; f < kTables; ++f) {
      if (group_of_[f] != g) continue;
      tables_[g].push_back(make_table(g, f, base));
      base += tables_[g].back().num_rows;
      mpe_parameters p{kind_[g], decay_[g], {0.05 + 0.01 * f, 0.01, 0.1, 0.1, 0.01, 0.1}};
      if (kind_[g] == MPE_optimizer_ftrl) p.values[2] = -0.5;
      parameters_.push_back(p);
    }
    for (mpe_table& table : tables_[g]) by_feature_[table.feature] = &table;
    const int64_t count = static_cast<int64_t>(tables_[g].size());
    mpe_group& group = groups[g];
    optimizers_[g] = mpe_optimizer{
        kind_[g], decay_[g],
        coefficients + (static_cast<int64_t>(parameters_.size()) - count) * MPE_MAX_COEFFICIENTS,
        nullptr, nullptr};
    group.tables = tables_[g].data();
    group.device_tables = replica.make<mpe_table>(count, tables_[g].data());
    group.optimizer = kind_[g] < 0 ? nullptr : &optimizers_[g];
    group.step = step;
    group.seed = 11;
    group.num_tables = static_cast<int32_t>(count);
    group.dim = group_dim_[g];
    group.rounding = draw(MPE_NUM_ROUNDINGS);
    if (cached_[g]) add_cache(g);
    for (int32_t t = 0; t < group.num_tables; ++t) {
      replica.check(replica.b->init_rows(&group, t, MPE_init_uniform, -0.5f, 0.5f, nullptr),
                    "init_rows");
    }
    replica.check(replica.b->synchronize(nullptr), "synchronize");
  }

  mpe_table make_table(int32_t g, int32_t feature, int64_t base) {
    mpe_table t{};
    t.precision = draw(MPE_NUM_FORMATS);
    t.pooling = unpooled_ && feature % 3 == 1 ? MPE_pooling_none : draw(2);
    t.num_rows = feature == 2 ? 0 : 3 + draw(60);
    t.base = base;
    t.first_row = 1000 * feature;
    t.table_id = t.feature = feature;
    t.column = columns_[feature];
    int64_t bytes = mpe_row_bytes(t.precision, dims_[feature]), offsets[MPE_MAX_STATES] = {};
    const int32_t states = kind_[g] < 0 ? 0 : mpe_num_states(kind_[g]);
    for (int32_t i = 0; i < states; ++i) {
      t.states[i].format = draw(2) == 0 ? MPE_format_fp32 : MPE_format_bf16;
      const int64_t values = mpe_state_shape(kind_[g], i) == MPE_STATE_ROW ? 1 : dims_[feature];
      const int64_t each = t.states[i].format == MPE_format_fp32 ? 4 : 2;
      bytes = (bytes + each - 1) / each * each;
      offsets[i] = bytes;
      bytes += values * each;
    }
    bytes = (bytes + 3) / 4 * 4;
    t.rows = replica.make<uint8_t>(bytes * t.num_rows);
    t.row_stride = bytes;
    for (int32_t i = 0; i < states; ++i) {
      t.states[i].data = t.rows + offsets[i];
      t.states[i].stride = bytes;
    }
    t.stats = replica.make<int64_t>(MPE_NUM_STATS);
    t.noise = replica.make<int64_t>(MPE_NUM_NOISE_SUMS);
    arrays_.push_back({t.rows, bytes * t.num_rows});
    arrays_.push_back({t.stats, MPE_NUM_STATS * 8});
    arrays_.push_back({t.noise, MPE_NUM_NOISE_SUMS * 8});
    return t;
  }

  template <class T>
  void keep(const T* array, int64_t n) {
    if (array != nullptr) arrays_.push_back({array, n * static_cast<int64_t>(sizeof(T))});
  }

  void add_cache(int32_t g) {
    mpe_cache& cache = caches[g];
    cache = make_cache(replica, kind_[g], policy_, 1 + draw(2), group_dim_[g]);
    const int64_t slots = cache.num_sets * cache.ways;
    keep(cache.tags, slots);
    keep(cache.meta, slots);
    keep(cache.rows, slots * mpe_slot_floats(kind_[g], group_dim_[g]));
    keep(cache.values, slots * mpe_slot_values(kind_[g]));
    keep(cache.counters, 2);
    keep(cache.sketch, MPE_SKETCH_ROWS * cache.sketch_width);
    groups[g].cache = &cache;
  }

  std::mt19937_64 rng_;
  int32_t group_dim_[kGroups], kind_[kGroups], decay_[kGroups], policy_ = 0;
  bool cached_[kGroups], unpooled_ = false;
  int32_t group_of_[kTables], dims_[kTables];
  int64_t columns_[kTables], width_ = 0;
  std::vector<mpe_table> tables_[kGroups];
  const mpe_table* by_feature_[kTables];
  mpe_optimizer optimizers_[kGroups]{};
  std::vector<mpe_parameters> parameters_;
  std::vector<std::pair<const void*, int64_t>> arrays_;
};

// A batch, the outputs it gets and their gradient, on one world.
struct Sample {
  mpe_batch batch{};
  float *out, *grad, *weight_grad = nullptr;
  int64_t size;  // of the outputs
  std::vector<mpe_matrix> out_tables, grad_tables;
  mpe_results outputs{}, gradients{};

  Sample(World& w, uint64_t seed, bool out_of_range) {
    std::mt19937_64 rng(seed);
    const auto draw = [&rng](int64_t n) {
      return static_cast<int64_t>(rng() % static_cast<uint64_t>(n));
    };
    const int64_t bags = 1 + draw(5);
    std::vector<int64_t> indices, offsets{0}, counts;
    for (int32_t f = 0; f < kTables; ++f) {
      const int64_t rows = w.table(f).num_rows, before = static_cast<int64_t>(indices.size());
      for (int64_t b = 0; b < bags; ++b) {
        for (int64_t i = rows == 0 ? 0 : draw(7); i > 0; --i) {
          indices.push_back(out_of_range && draw(9) == 0 ? rows + 5 : draw(rows));
        }
        offsets.push_back(static_cast<int64_t>(indices.size()));
      }
      counts.push_back(static_cast<int64_t>(indices.size()) - before);
    }
    const int64_t n = static_cast<int64_t>(indices.size());
    fill(w, indices, offsets, bags, draw(2) == 0);
    std::vector<int64_t> starts;
    size = lay_out(w, bags, counts, &starts);
    std::vector<float> values(static_cast<size_t>(size));
    for (float& v : values) v = static_cast<float>(draw(2001) - 1000) * 0.001f;
    if (size > 0 && draw(8) == 0) values[static_cast<size_t>(draw(size))] = 1e38f * 10.0f;
    out = w.replica.make<float>(size);
    grad = w.replica.make<float>(size, values.data());
    if (batch.weights != nullptr) weight_grad = w.replica.make<float>(n);
    if (!w.unpooled()) {
      outputs.shared = mpe_matrix{out, w.width()};
      gradients.shared = mpe_matrix{grad, w.width()};
      return;
    }
    for (int32_t f = 0; f < kTables; ++f) {
      out_tables.push_back(mpe_matrix{out + starts[static_cast<size_t>(f)], w.dim_of(f)});
      grad_tables.push_back(mpe_matrix{grad + starts[static_cast<size_t>(f)], w.dim_of(f)});
    }
    outputs.tables = out_tables.data();
    gradients.tables = grad_tables.data();
  }

 private:
  void fill(World& w, const std::vector<int64_t>& indices, const std::vector<int64_t>& offsets,
            int64_t bags, bool weighted) {
    const int64_t n = static_cast<int64_t>(indices.size());
    std::vector<float> weights(indices.size());
    for (size_t i = 0; i < weights.size(); ++i) weights[i] = static_cast<float>(i % 7) * 0.25f;
    batch.indices = w.replica.make<int64_t>(n, indices.data());
    batch.offsets = w.replica.make<int64_t>(static_cast<int64_t>(offsets.size()), offsets.data());
    if (weighted) batch.weights = w.replica.make<float>(n, weights.data());
    batch.num_indices = n;
    batch.batch_size = bags;
    batch.num_features = kTables;
    batch.index_bits = batch.offset_bits = 64;
  }

  // Where each table's outputs begin; returns their size.
  static int64_t lay_out(World& w, int64_t bags, const std::vector<int64_t>& counts,
                         std::vector<int64_t>* starts) {
    if (!w.unpooled()) return bags * w.width();
    int64_t end = 0;
    for (int32_t f = 0; f < kTables; ++f) {
      starts->push_back(end);
      const bool none = w.table(f).pooling == MPE_pooling_none;
      end += (none ? counts[static_cast<size_t>(f)] : bags) * w.dim_of(f);
    }
    return end;
  }
};

inline void compare_states(World& a, World& b, const std::string& what) {
  const auto x = a.state(), y = b.state();
  for (size_t i = 0; i < x.size(); ++i) {
    compare(x[i], y[i], what + ": array " + std::to_string(i));
  }
}

}  // namespace step_tests
