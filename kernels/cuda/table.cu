// The function table of the CUDA backend.
#include "cuda/kernels.h"

#ifndef MPE_CUDA_ARCHS
#define MPE_CUDA_ARCHS "unknown"
#endif

extern "C" MPE_EXPORT const mpe_backend* mpe_cuda_backend(void) {
  using namespace mpembed::cuda;
  static const mpe_backend table = {
      MPE_API_VERSION,
      "cuda",
      MPE_CUDA_ARCHS,
      device_count,
      describe,
      current_device,
      use_device,
      allocate,
      release,
      borrow,
      give_back,
      copy,
      fill,
      synchronize,
      create_event,
      destroy_event,
      record,
      wait,
      last_error,
      check_offsets,
      prepare,
      discard,
      dedup,
      count,
      advance,
      cache_admit,
      cache_refresh,
      cache_release,
      cache_flush,
      cache_locate,
      scatter_slots,
      lookup,
      weight_grad,
      update,
      read_rows,
      write_rows,
      init_rows,
      check_values,
      quantize,
      dequantize,
      check_codes,
      pack_codes,
      unpack_codes,
      stochastic_round,
  };
  return &table;
}
