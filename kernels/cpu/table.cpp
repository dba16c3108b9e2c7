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
#define MPE_FUNCTION(result, name, arguments) name,
#include "mpembed/api_functions.h"
  };
  return &table;
}
