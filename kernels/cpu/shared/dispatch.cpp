// Chooses the instruction-set level once, and answers the C API's questions about the registry.
#include <cstdlib>
#include <cstring>

#include "cpu/shared/parallel.h"
#include "mpembed/api.h"
#include "mpembed/registry_types.h"
#include "state_formats.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

extern "C" {
const mpe_backend* mpe_cpu_backend_base(void);
#if defined(__x86_64__)
const mpe_backend* mpe_cpu_backend_avx2(void);
const mpe_backend* mpe_cpu_backend_avx512(void);
#endif
}

namespace {

#if defined(__x86_64__)
// Not every clang's __builtin_cpu_supports knows F16C.
bool has_f16c() {
  unsigned int a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid(1, &a, &b, &c, &d) != 0 && (c & bit_F16C) != 0;
}
#endif

// The highest level that this processor runs: 0 base, 1 avx2, 2 avx512.
int hardware_level() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("bmi2") && has_f16c();
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
                      __builtin_cpu_supports("avx512dq");
  return avx512 ? 2 : (avx2 ? 1 : 0);
#else
  return 0;
#endif
}

// The level that MPEMBED_ISA allows: the highest if it is not set or empty, -1 if it names no
// level.
int allowed_level() {
  const char* text = std::getenv("MPEMBED_ISA");
  if (text == nullptr || *text == 0 || std::strcmp(text, "avx512") == 0) return 2;
  if (std::strcmp(text, "avx2") == 0) return 1;
  return std::strcmp(text, "base") == 0 ? 0 : -1;
}

// An unknown name is ignored here; Python refuses it at import.
int chosen_level() {
  const int level = hardware_level(), allowed = allowed_level();
  return allowed < 0 || level < allowed ? level : allowed;
}

const mpe_backend* choose() {
#if defined(__x86_64__)
  switch (chosen_level()) {
    case 2:
      return mpe_cpu_backend_avx512();
    case 1:
      return mpe_cpu_backend_avx2();
    default:
      break;
  }
#else
  (void)chosen_level;
#endif
  return mpe_cpu_backend_base();
}

bool is_optimizer(int32_t id) { return id >= 0 && id < MPE_NUM_OPTIMIZERS; }

// What one of the user's own declares for a state.
mpembed::State state_of(const mpe_own_optimizer& own, int32_t i) {
  return {own.state_names[i], static_cast<mpembed::StateShape>(own.state_shapes[i]),
          own.state_initials[i]};
}

// A state of an optimizer; all zero if there is none with this number.
mpembed::State state_of(int32_t optimizer_id, int32_t i) {
  if (i < 0 || i >= mpe_num_states(optimizer_id)) return mpembed::State{};
  if (const auto* own = mpembed::own_optimizer(optimizer_id)) return state_of(*own, i);
  return mpembed::with_optimizer(optimizer_id, [&](auto optimizer) {
    if constexpr (decltype(optimizer)::kNumStates > 0) {
      return decltype(optimizer)::kStates[i];
    } else {
      return mpembed::State{};
    }
  });
}

}  // namespace

extern "C" {

MPE_EXPORT const mpe_backend* mpe_cpu_backend(void) {
  static const mpe_backend* const backend = choose();
  return backend;
}

MPE_EXPORT int64_t mpe_row_bytes(int32_t precision, int64_t dim) {
  if (precision < 0 || precision >= MPE_NUM_FORMATS) return -1;
  return mpembed::with_format(precision,
                              [&](auto format) { return decltype(format)::row_bytes(dim); });
}

MPE_EXPORT int64_t mpe_code_bytes(int32_t precision, int64_t dim) {
  if (precision < 0 || precision >= MPE_NUM_FORMATS) return -1;
  return mpembed::with_format(precision,
                              [&](auto format) { return decltype(format)::code_bytes(dim); });
}

MPE_EXPORT int32_t mpe_num_states(int32_t optimizer_id) {
  if (const auto* own = mpembed::own_optimizer(optimizer_id)) return own->num_states;
  if (!is_optimizer(optimizer_id)) return 0;
  return mpembed::with_optimizer(optimizer_id,
                                 [](auto optimizer) { return decltype(optimizer)::kNumStates; });
}

MPE_EXPORT const char* mpe_state_name(int32_t optimizer_id, int32_t i) {
  return state_of(optimizer_id, i).name;
}

MPE_EXPORT int32_t mpe_state_shape(int32_t optimizer_id, int32_t i) {
  return static_cast<int32_t>(state_of(optimizer_id, i).shape);
}

MPE_EXPORT float mpe_state_initial(int32_t optimizer_id, int32_t i) {
  return state_of(optimizer_id, i).initial;
}

MPE_EXPORT const char* mpe_parameter_name(int32_t optimizer_id, int32_t i) {
  const mpe_own_optimizer* own = mpembed::own_optimizer(optimizer_id);
  if ((own == nullptr && !is_optimizer(optimizer_id)) || i < 0) return nullptr;
  if (i == mpembed::kLr) return "lr";
  if (i == mpembed::kWeightDecay) return "weight_decay";
  if (own != nullptr) {
    const int32_t place = i - mpembed::kOwnParameters;
    return place < own->num_parameters ? own->parameters[place] : nullptr;
  }
  return mpembed::with_optimizer(optimizer_id, [&](auto optimizer) -> const char* {
    for (const char* name : decltype(optimizer)::kParameters) {
      if (name == nullptr || i-- == mpembed::kOwnParameters) return name;
    }
    return nullptr;
  });
}

MPE_EXPORT int64_t mpe_slot_floats(int32_t optimizer_id, int64_t dim) {
  return mpembed::state_shapes(optimizer_id).slot_floats(dim);
}

MPE_EXPORT int64_t mpe_slot_values(int32_t optimizer_id) {
  return mpembed::state_shapes(optimizer_id).slot_values();
}

MPE_EXPORT int32_t mpe_policy_has_sketch(int32_t policy_id) {
  return mpembed::with_policy(
      policy_id, [](auto policy) { return static_cast<int32_t>(decltype(policy)::kSketch); });
}

MPE_EXPORT int32_t mpe_get_num_threads(void) { return mpembed::cpu::max_threads(); }

MPE_EXPORT void mpe_set_num_threads(int32_t n) {
  mpembed::cpu::set_threads(
      n < 1 ? 1 : (n > mpembed::cpu::kMaxThreads ? mpembed::cpu::kMaxThreads : n));
}

MPE_EXPORT const char* mpe_invalid_variable(void) {
  if (!mpembed::cpu::threads_env_valid()) return "MPEMBED_NUM_THREADS";
  return allowed_level() < 0 ? "MPEMBED_ISA" : nullptr;
}
}
