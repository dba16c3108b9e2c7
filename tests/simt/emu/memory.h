// Loads and stores with cache hints. Like hardware, they fault on a misaligned address.
#ifndef SIMT_EMU_MEMORY_H
#define SIMT_EMU_MEMORY_H

#include <type_traits>

#include "emu/engine.h"

#define SIMT_LOAD(name, before)                                                     \
  template <class T>                                                                \
  inline T name(const T* p, simt::Site site = simt::Site::here()) {                 \
    static_assert(std::is_trivially_copyable<T>::value, "a scalar or vector type"); \
    before;                                                                         \
    simt::check_access(p, sizeof(T), alignof(T), site);                             \
    return *p;                                                                      \
  }
#define SIMT_STORE(name)                                                                  \
  template <class T>                                                                      \
  inline void name(T* p, std::common_type_t<T> v, simt::Site site = simt::Site::here()) { \
    static_assert(std::is_trivially_copyable<T>::value, "a scalar or vector type");       \
    simt::preempt();                                                                      \
    simt::check_access(p, sizeof(T), alignof(T), site);                                   \
    *p = v;                                                                               \
  }

SIMT_LOAD(__ldg, )
SIMT_LOAD(__ldca, )
SIMT_LOAD(__ldcs, )
SIMT_LOAD(__ldlu, )
SIMT_LOAD(__ldcg, simt::preempt())
SIMT_LOAD(__ldcv, simt::preempt())
SIMT_STORE(__stwb)
SIMT_STORE(__stcg)
SIMT_STORE(__stcs)
SIMT_STORE(__stwt)
#undef SIMT_LOAD
#undef SIMT_STORE

#endif
