// CUB's protocol: a call without temporary storage returns how much it needs.
#ifndef SIMT_EMU_CUB_COMMON_H
#define SIMT_EMU_CUB_COMMON_H

#include <string.h>

#include <iterator>
#include <mutex>
#include <type_traits>

#include "cuda_runtime.h"
#include "emu/device_memory.h"
#include "emu/graph.h"

namespace simt {

template <class Iterator>
using ValueOf = typename std::iterator_traits<Iterator>::value_type;

inline cudaError_t cub_refuse(const char* what) {
  fprintf(stderr, "SIMT: cub: %s\n", what);
  return set_error(cudaErrorInvalidValue);
}

// Checks n, overwrites the temporary storage (so that a caller who keeps data there notices), and
// runs f() with access to device memory. f owns what it needs.
template <class F>
cudaError_t cub_call(void* storage, size_t& storage_bytes, size_t needed, int64_t n,
                     cudaStream_t stream, F f) {
  const std::lock_guard<std::recursive_mutex> lock(runtime_mutex());
  if (storage == nullptr) {
    storage_bytes = needed;
    return set_error(n < 0 ? cudaErrorInvalidValue : cudaSuccess);
  }
  if (const cudaError_t error = set_error(cudaSuccess); error != cudaSuccess) return error;
  if (n < 0) return cub_refuse("a negative number of items");
  if (storage_bytes < needed) return cub_refuse("too little temporary storage");
  return set_error(submit(stream, [=] {
    const DeviceAccess access;
    if (!is_device_range(storage, needed)) {
      return cub_refuse("temporary storage is no device memory");
    }
    memset(storage, 0xA5, needed);
    F once = f;  // so that no launch of a graph changes f for the next
    once();
    check_guards();
    return cudaSuccess;
  }));
}

}  // namespace simt

#endif
