// Replaces the C library's header: a failed assert in a kernel is a device error and does not end
// the process. Like the original it may be included again after NDEBUG has changed.
#include "emu/fail.h"

#undef assert
#if defined(NDEBUG)
#define assert(condition) (static_cast<void>(0))
#else
#define assert(condition)             \
  ((condition) ? static_cast<void>(0) \
               : ::simt::assert_failed(#condition, __FILE__, __LINE__, __func__))
#endif
