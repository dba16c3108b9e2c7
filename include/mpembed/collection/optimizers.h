// The optimizer of each table, and what its settings may be: as Python's classes have them.
#ifndef MPEMBED_COLLECTION_OPTIMIZERS_H
#define MPEMBED_COLLECTION_OPTIMIZERS_H

#include <cfloat>
#include <cstdio>

#include "mpembed/collection/checks.h"
#include "mpembed/registry_types.h"

namespace mpembed::detail {

// Which values a parameter may have.
struct ParameterRange {
  double low, high;
  const char* text;

  bool holds(double value) const { return value >= low && value <= high; }  // false for NaN
};

inline ParameterRange range_of(int32_t kind, const std::string& name) {
  if (name == "eps" || (name == "lr" && kind == MPE_optimizer_ftrl)) {
    // A denominator. Half of the smallest float rounds to 0; what is above it does not.
    const double zero = static_cast<double>(FLT_TRUE_MIN) / 2;
    return {std::nextafter(zero, 1.0), FLT_MAX, "finite and > 0 as a float"};
  }
  if (name == "beta1" || name == "beta2") return {0.0, std::nextafter(1.0, 0.0), ">= 0 and < 1"};
  if (name == "lr_power") return {-1.0, 0.0, "in -1 .. 0"};
  return {0.0, FLT_MAX, "finite and >= 0 as a float"};
}

// How messages call an optimizer, such as "the optimizer adam of table 'item'".
inline std::string optimizer_text(int32_t kind, const std::string& owner) {
#define MPE_NAME(id, name, type) #name,
  static constexpr const char* names[] = {MPE_OPTIMIZERS(MPE_NAME)};
#undef MPE_NAME
  return std::string("the optimizer ") + names[kind] + " of " + owner;
}

// The place of a parameter among those of its optimizer.
inline int32_t parameter_place(int32_t kind, const std::string& name,
                               const std::string& optimizer) {
  std::string known;
  bool has_betas = false;
  for (int32_t i = 0; mpe_parameter_name(kind, i) != nullptr; ++i) {
    const std::string one = mpe_parameter_name(kind, i);
    if (one == name) return i;
    known += (known.empty() ? "'" : ", '") + one + "'";
    has_betas = has_betas || one == "beta1";
  }
  const char* hint = has_betas && name == "betas" ? "; give betas as 'beta1' and 'beta2'" : "";
  throw std::invalid_argument(optimizer + " has no parameter '" + name + "'; it has " + known +
                              hint);
}

inline void check_parameter(int32_t kind, int32_t decay_mode, const std::string& name, double value,
                            const std::string& optimizer) {
  char text[32];
  std::snprintf(text, sizeof(text), "%g", value);
  const ParameterRange range = range_of(kind, name);
  require(range.holds(value),
          "parameter '" + name + "' of " + optimizer + " must be " + range.text + ", got " + text);
  require(name != "weight_decay" || value == 0.0 || decay_mode != MPE_decay_none,
          "parameter 'weight_decay' of " + optimizer + " is " + text +
              " and needs a decay_mode: MPE_decay_l2 or MPE_decay_decoupled");
}

// An optimizer's parameters in the order of the C API.
inline mpe_parameters parameters_of(const OptimizerConfig& optimizer, const std::string& owner) {
  require_number("the kind of the optimizer of " + owner, optimizer.kind, 0,
                 MPE_NUM_OPTIMIZERS - 1);
  const std::string own = optimizer_text(optimizer.kind, owner);
  require_number("decay_mode of " + own, optimizer.decay_mode, 0, MPE_NUM_WEIGHT_DECAYS - 1);
  mpe_parameters made{optimizer.kind, optimizer.decay_mode, {}};
  for (const auto& [name, value] : optimizer.parameters) {
    const int32_t place = parameter_place(optimizer.kind, name, own);
    check_parameter(optimizer.kind, optimizer.decay_mode, name, value, own);
    made.values[place] = value;
  }
  for (int32_t i = 0; mpe_parameter_name(optimizer.kind, i) != nullptr; ++i) {
    const std::string name = mpe_parameter_name(optimizer.kind, i);
    require(name == "weight_decay" || optimizer.parameters.count(name) == 1,
            own + " needs its parameter '" + name + "'");
  }
  return made;
}

// That the states it names exist, in formats that states may have.
inline void check_states(const OptimizerConfig& optimizer) {
  std::set<std::string> known;
  for (int32_t i = 0; i < mpe_num_states(optimizer.kind); ++i) {
    known.insert(mpe_state_name(optimizer.kind, i));
  }
  for (const auto& [name, format] : optimizer.state_formats) {
    require(known.count(name) == 1, "the optimizer has no state '" + name + "'");
    require(is_state_format(format), "state '" + name + "' must be FP32 or BF16");
  }
  for (const auto& [name, value] : optimizer.initial_values) {
    require(known.count(name) == 1, "the optimizer has no state '" + name + "'");
    require(std::isfinite(value), "state '" + name + "' must start with a finite value");
  }
}

// Who messages say has the optimizer that trains a table.
inline std::string owner_of(const TableConfig& table) {
  return table.optimizer.has_value() ? "table '" + table.name + "'" : "the options";
}

// What trains a table; NULL if it is frozen.
inline const OptimizerConfig* optimizer_of(const TableConfig& table,
                                           const CollectionOptions& options) {
  if (!table.trainable) return nullptr;
  return table.optimizer.has_value() ? &*table.optimizer : &*options.optimizer;
}

inline void check_optimizer(const OptimizerConfig& optimizer, const std::string& owner) {
  parameters_of(optimizer, owner);
  check_states(optimizer);
}

inline void check_optimizers(const std::vector<TableConfig>& tables,
                             const CollectionOptions& options) {
  if (options.optimizer.has_value()) check_optimizer(*options.optimizer, "the options");
  for (const TableConfig& table : tables) {
    if (table.optimizer.has_value()) check_optimizer(*table.optimizer, owner_of(table));
    require(!table.trainable || table.optimizer.has_value() || options.optimizer.has_value(),
            "table '" + table.name +
                "' has no optimizer: set CollectionOptions::optimizer or the table's own, or "
                "freeze it (trainable = false)");
  }
}

}  // namespace mpembed::detail

#endif
