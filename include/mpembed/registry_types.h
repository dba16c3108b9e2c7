// The types behind the registry's names: include this to dispatch on a format, optimizer or policy.
#ifndef MPEMBED_REGISTRY_TYPES_H
#define MPEMBED_REGISTRY_TYPES_H

#include "mpembed/format/bf16.h"
#include "mpembed/format/fp16.h"
#include "mpembed/format/fp32.h"
#include "mpembed/format/int2.h"
#include "mpembed/format/int4.h"
#include "mpembed/format/int5.h"
#include "mpembed/format/int6.h"
#include "mpembed/format/int8.h"
#include "mpembed/format/int8_fp16.h"
#include "mpembed/optim/adagrad.h"
#include "mpembed/optim/adam.h"
#include "mpembed/optim/ftrl.h"
#include "mpembed/optim/lamb.h"
#include "mpembed/optim/rowwise_adagrad.h"
#include "mpembed/optim/rowwise_adam.h"
#include "mpembed/optim/sgd.h"
#include "mpembed/optim/sgd_momentum.h"
#include "mpembed/policy/lfu.h"
#include "mpembed/policy/lru.h"
#include "mpembed/registry.h"

MPE_BEGIN

// f may be for the host or for the device alone, which these functions cannot say.
#if defined(__CUDACC__)
#define MPE_ANY_SIDE _Pragma("nv_exec_check_disable")
#else
#define MPE_ANY_SIDE
#endif

// Calls f(Int4{}) and the like: an object of the format's empty type, for the format with this id.
// The id must be valid. Code that is compiled for certain tables may define MPE_USED_FORMATS, a
// selection of MPE_FORMATS.
#define MPE_CASE(id, name, type) \
  case id:                       \
    return f(type{});

MPE_ANY_SIDE
template <class F>
MPE_HD auto with_format(int32_t id, F f) {
  switch (id) {
#if defined(MPE_USED_FORMATS)
    MPE_USED_FORMATS(MPE_CASE)
    default:
      __builtin_unreachable();
#else
    MPE_FORMATS(MPE_CASE)
    default:
      return f(Fp32{});
#endif
  }
}

// The same for the format of an optimizer's state, see is_state_format.
#define MPE_TEST(number, name, type) \
  if (id == number) return f(type{});

MPE_ANY_SIDE
template <class F>
MPE_HD auto with_state_format(int32_t id, F f) {
  MPE_STATE_FORMATS(MPE_TEST)
  __builtin_unreachable();
}

// The same for the format of outputs or their gradients, see is_output_format.
MPE_ANY_SIDE
template <class F>
MPE_HD auto with_output_format(int32_t id, F f) {
  MPE_OUTPUT_FORMATS(MPE_TEST)
  __builtin_unreachable();
}

#define MPE_OR_EQUALS(number, name, type) || id == number
inline bool is_state_format(int32_t id) { return false MPE_STATE_FORMATS(MPE_OR_EQUALS); }
inline bool is_output_format(int32_t id) { return false MPE_OUTPUT_FORMATS(MPE_OR_EQUALS); }
#undef MPE_OR_EQUALS

MPE_ANY_SIDE
template <class F>
MPE_HD auto with_optimizer(int32_t id, F f) {
  switch (id) {
    MPE_OPTIMIZERS(MPE_CASE)
    default:
      return f(Sgd{});
  }
}

MPE_ANY_SIDE
template <class F>
MPE_HD auto with_policy(int32_t id, F f) {
  switch (id) {
    MPE_POLICIES(MPE_CASE)
    default:
      return f(Lru{});
  }
}

#undef MPE_CASE
#undef MPE_TEST
#undef MPE_ANY_SIDE

MPE_END

#endif
