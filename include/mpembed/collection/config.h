// What a Collection is made of: tables, caches, optimizers. Plain data; storage.h checks it.
#ifndef MPEMBED_COLLECTION_CONFIG_H
#define MPEMBED_COLLECTION_CONFIG_H

#include <map>
#include <optional>
#include <string>

#include "mpembed/api.h"

namespace mpembed {

// How tables are trained. All of the optimizer's parameters are given by name (docs/cpp.md lists
// them), except that "weight_decay" is 0 where it is left out. Another needs a decay mode.
struct OptimizerConfig {
  int32_t kind = MPE_optimizer_sgd;
  std::map<std::string, double> parameters = {};
  int32_t decay_mode = MPE_decay_none;
  std::map<std::string, int32_t> state_formats = {};  // of states that are not FP32
  std::map<std::string, float> initial_values = {};   // of states that do not start as declared
};

// Initial rows: MPE_init_..., uniform in a .. b, or normal with a standard deviation of a.
struct InitConfig {
  int32_t kind = MPE_init_zeros;
  float a = 0.0f, b = 0.0f;
};

struct TableConfig {
  std::string name;
  int64_t num_rows = 0;
  int32_t dim = 0;
  int32_t precision = MPE_format_fp32;
  int32_t pooling = MPE_pooling_sum;
  bool trainable = true;                          // false: frozen, without optimizer and states
  std::optional<OptimizerConfig> optimizer = {};  // where left out: that of the options
  std::optional<InitConfig> init = {};            // where left out: uniform in +-1/sqrt(total_rows)
  int32_t placement = MPE_PLACEMENT_DEVICE;
  // A shard: which table it is, the number of its row 0 there, and how many rows that has. -1: its
  // own place, and its own rows.
  int32_t table_id = -1;
  int64_t first_row = 0;
  int64_t total_rows = -1;
};

// The FP32 cache of each group of tables with one dimension, optimizer and mode of weight decay.
struct CacheConfig {
  double load_factor = 0.0;  // slots / rows; or
  int64_t num_sets = 0;      // sets of each group's cache
  int32_t policy = MPE_policy_lru;
  int32_t ways = 32;
};

struct CollectionOptions {
  std::optional<OptimizerConfig> optimizer = {};  // of tables that are trained and have no own
  std::optional<CacheConfig> cache = {};
  uint64_t seed = 0;
  int32_t rounding = MPE_DEFAULT_ROUNDING;
  bool drop = false;  // drop indices out of range, instead of refusing their batch
};

}  // namespace mpembed

#endif
