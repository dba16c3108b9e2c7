// The function table of one instruction-set level.
#include "cpu/kernels.h"

#define MPE_STRING2(x) #x
#define MPE_STRING(x) MPE_STRING2(x)

extern "C" const mpe_backend* MPE_CONCAT(mpe_cpu_backend_, MPE_ISA)(void) {
  using namespace mpembed;
  static const mpe_backend table = {
      MPE_API_VERSION,
      "cpu",
      MPE_STRING(MPE_ISA),
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
