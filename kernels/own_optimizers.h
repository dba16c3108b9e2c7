// The list behind own_optimizer(): a library has one each. An entry stays where it is until the
// process ends.
#pragma once

#include <array>
#include <atomic>
#include <new>
#include <string>

#include "own_optimizer.h"

namespace mpembed {

// An optimizer with texts of its own.
class OwnOptimizer {
 public:
  explicit OwnOptimizer(const mpe_own_optimizer& given) : fields_(given) {
    fields_.name = keep(given.name, &name_);
    for (int i = 0; i < MPE_MAX_STATES; ++i) {
      fields_.state_names[i] =
          i < given.num_states ? keep(given.state_names[i], &states_[i]) : nullptr;
    }
    for (int i = 0; i < MPE_MAX_PARAMETERS; ++i) {
      fields_.parameters[i] =
          i < given.num_parameters ? keep(given.parameters[i], &parameters_[i]) : nullptr;
    }
  }
  OwnOptimizer(const OwnOptimizer&) = delete;
  OwnOptimizer& operator=(const OwnOptimizer&) = delete;

  const mpe_own_optimizer& fields() const { return fields_; }

  // Whether its counts and shapes are such as kernels can bear.
  static bool is_valid(const mpe_own_optimizer& given) {
    int values = 0;
    if (given.num_states < 0 || given.num_states > MPE_MAX_STATES) return false;
    for (int i = 0; i < given.num_states; ++i) {
      const int32_t shape = given.state_shapes[i];
      if (shape != MPE_STATE_ROW && shape != MPE_STATE_ELEMENT) return false;
      values += shape == MPE_STATE_ROW ? 1 : 0;
    }
    return values <= 1 && given.num_parameters >= 0 &&
           given.num_parameters <= MPE_MAX_PARAMETERS - 2;  // beside lr and weight_decay
  }

 private:
  static const char* keep(const char* text, std::string* in) {
    *in = text;
    return in->c_str();
  }

  mpe_own_optimizer fields_;
  std::string name_, states_[MPE_MAX_STATES], parameters_[MPE_MAX_PARAMETERS];
};

// The list of a library. Any thread may read it while another one adds to it.
class OwnOptimizers {
 public:
  const mpe_own_optimizer* find(int32_t kind) const {
    const int32_t place = kind - MPE_NUM_OPTIMIZERS;
    if (place < 0 || place >= MPE_MAX_OWN_OPTIMIZERS) return nullptr;
    const OwnOptimizer* found = entries_[static_cast<size_t>(place)].load();
    return found == nullptr ? nullptr : &found->fields();
  }

  // Adds an optimizer under a number, unless that is taken. MPE_ERR_VALUE if it is not valid or the
  // number is out of range.
  mpe_status add(int32_t kind, const mpe_own_optimizer& given) {
    const int32_t place = kind - MPE_NUM_OPTIMIZERS;
    if (place < 0 || place >= MPE_MAX_OWN_OPTIMIZERS || !OwnOptimizer::is_valid(given)) {
      return MPE_ERR_VALUE;
    }
    try {
      const OwnOptimizer* made = new OwnOptimizer(given);
      const OwnOptimizer* none = nullptr;
      if (!entries_[static_cast<size_t>(place)].compare_exchange_strong(none, made)) delete made;
    } catch (const std::bad_alloc&) {
      return MPE_ERR_MEMORY;
    }
    return MPE_OK;
  }

 private:
  std::array<std::atomic<const OwnOptimizer*>, MPE_MAX_OWN_OPTIMIZERS> entries_{};
};

}  // namespace mpembed
