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
#define MPE_FUNCTION(result, name, arguments) name,
#include "mpembed/api_functions.h"
  };
  return &table;
}
