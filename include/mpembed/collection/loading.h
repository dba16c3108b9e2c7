// A Collection out of a checkpoint of Python's, for serving: its tables are frozen.
#ifndef MPEMBED_COLLECTION_LOADING_H
#define MPEMBED_COLLECTION_LOADING_H

#include <algorithm>
#include <memory>

#include "mpembed/checkpoint.h"
#include "mpembed/collection/storage.h"

namespace mpembed::detail {

// An open checkpoint. What is wrong with the file is thrown as std::runtime_error with its name.
class Checkpoint {
 public:
  explicit Checkpoint(const std::string& path)
      : checkpoint_(mpe_checkpoint_open(path.c_str()), mpe_checkpoint_close) {
    if (checkpoint_ == nullptr) throw std::bad_alloc();
    refuse_errors();
    mpe_checkpoint_describe(checkpoint_.get(), &info);
  }

  std::vector<TableConfig> tables() const {
    std::vector<TableConfig> configs;
    for (int32_t t = 0; t < info.num_tables; ++t) {
      mpe_checkpoint_table table;
      mpe_checkpoint_get_table(checkpoint_.get(), t, &table);
      TableConfig config;
      config.name = table.name;
      config.num_rows = table.num_rows;
      config.dim = table.dim;
      config.precision = table.precision;
      config.pooling = table.pooling;
      config.trainable = false;
      config.table_id = table.table_id;
      config.first_row = table.first_row;
      configs.push_back(config);
    }
    return configs;
  }

  mpe_checkpoint_group group(int32_t g) const {
    mpe_checkpoint_group group;
    mpe_checkpoint_get_group(checkpoint_.get(), g, &group);
    return group;
  }

  // Reads an array; where it lies on a device, through memory of the host.
  template <class T>
  void read(const Device& device, const std::string& name, T* to, int64_t n) {
    const int64_t bytes = n * static_cast<int64_t>(sizeof(T));
    if (device.is_cpu()) return read_here(name, to, bytes);
    std::vector<T> values(static_cast<size_t>(n));
    read_here(name, values.data(), bytes);
    device.check(device.backend().copy(to, values.data(), bytes, device.stream()), "copying");
  }
  void read_here(const std::string& name, void* to, int64_t bytes) {
    const mpe_status status = mpe_checkpoint_read(checkpoint_.get(), name.c_str(), to, bytes);
    if (status == MPE_ERR_MEMORY) throw std::bad_alloc();
    if (status != MPE_OK) refuse_errors();
  }

  mpe_checkpoint_info info{};

 private:
  void refuse_errors() const {
    const char* error = mpe_checkpoint_error(checkpoint_.get());
    if (error != nullptr) throw std::runtime_error(error);
  }

  std::unique_ptr<mpe_checkpoint, void (*)(mpe_checkpoint*)> checkpoint_;
};

// The groups that a checkpoint's tables are in. Their caches may differ in size, so each has its
// own number of sets; policy and ways are those of all.
inline std::vector<GroupPlan> plans_of(const Checkpoint& checkpoint, CollectionOptions* options) {
  std::vector<GroupPlan> plans;
  for (int32_t g = 0; g < checkpoint.info.num_groups; ++g) {
    const mpe_checkpoint_group group = checkpoint.group(g);
    GroupPlan plan;
    plan.tables.assign(group.tables, group.tables + group.num_tables);
    plan.num_sets = group.num_sets;
    if (group.num_sets > 0) {
      options->cache = CacheConfig{0.0, group.num_sets, group.policy, group.ways};
    }
    plans.push_back(plan);
  }
  return plans;
}

// A slot of a frozen table has the row alone: the states behind it stay behind.
inline void read_cached_rows(Checkpoint& checkpoint, const mpe_checkpoint_group& group,
                             const std::string& name, Array<float>* rows) {
  const int64_t slots = group.num_sets * group.ways;
  std::vector<float> all(static_cast<size_t>(slots * group.slot_floats));
  checkpoint.read_here(name, all.data(), static_cast<int64_t>(all.size() * sizeof(float)));
  std::vector<float> kept(static_cast<size_t>(slots * group.dim));
  for (int64_t slot = 0; slot < slots; ++slot) {
    std::copy_n(all.begin() + slot * group.slot_floats, group.dim, kept.begin() + slot * group.dim);
  }
  rows->set(kept);
}

inline void fill(const Device& device, Checkpoint& checkpoint, Storage* storage) {
  for (size_t t = 0; t < storage->configs().size(); ++t) {
    const Records& records = storage->records(t);
    checkpoint.read(device, "table." + storage->configs()[t].name + ".rows", records.field(0),
                    records.bytes());
  }
  for (int32_t g = 0; g < checkpoint.info.num_groups; ++g) {
    const mpe_checkpoint_group group = checkpoint.group(g);
    std::optional<CacheStorage>& cache = storage->group(static_cast<size_t>(g)).cache;
    if (!cache.has_value()) continue;
    const auto read = [&](const char* name, auto& array) {
      checkpoint.read(device, std::string("cache.") + group.label + "." + name, array.data(),
                      array.size());
    };
    read("tags", cache->tags);
    read("meta", cache->meta);
    read("counters", cache->counters);
    if (cache->sketch.size() > 0) read("sketch", cache->sketch);
    read_cached_rows(checkpoint, group, std::string("cache.") + group.label + ".rows",
                     &cache->rows);
  }
  storage->counts().write(0, &checkpoint.info.step, 1);
}

}  // namespace mpembed::detail

#endif
