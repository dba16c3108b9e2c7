// Which devices there are, and which one a thread uses.
#include "cuda/kernels.h"
#include "cuda/launch.cuh"

namespace mpembed {
namespace cuda {
namespace {

// The driver's cuDevicePrimaryCtxGetState, without a library to link.
using ContextState = int (*)(int device, unsigned* flags, int* active);

ContextState find_context_state() {
  void* found = nullptr;
  cudaDriverEntryPointQueryResult result = cudaDriverEntryPointSymbolNotFound;
#if CUDART_VERSION >= 12050
  const cudaError_t error = cudaGetDriverEntryPointByVersion("cuDevicePrimaryCtxGetState", &found,
                                                             7000, cudaEnableDefault, &result);
#else
  const cudaError_t error =
      cudaGetDriverEntryPoint("cuDevicePrimaryCtxGetState", &found, cudaEnableDefault, &result);
#endif
  if (error != cudaSuccess) forget_error();
  if (error != cudaSuccess || result != cudaDriverEntryPointSuccess) return nullptr;
  return reinterpret_cast<ContextState>(found);
}

}  // namespace

mpe_status device_count(int32_t* count) {
  int n = 0;
  const mpe_status status = check(cudaGetDeviceCount(&n), "counting devices");
  *count = status == MPE_OK ? n : 0;
  return status;
}

mpe_status describe(int32_t device, mpe_device* out) {
  cudaDeviceProp properties;
  MPE_TRY(check(cudaGetDeviceProperties(&properties, device), "describing a device"));
  *out = mpe_device{};
  for (size_t i = 0; i + 1 < sizeof out->name && properties.name[i] != 0; ++i) {
    out->name[i] = properties.name[i];
  }
  out->memory = static_cast<int64_t>(properties.totalGlobalMem);
  out->major = properties.major;
  out->minor = properties.minor;
  return MPE_OK;
}

mpe_status current_device(int32_t* device) {
  int n = 0;
  const mpe_status status = check(cudaGetDevice(&n), "asking for the device");
  *device = n;
  return status;
}

mpe_status use_device(int32_t device) { return check(cudaSetDevice(device), "choosing a device"); }

mpe_status device_in_use(int32_t device, int32_t* in_use) {
  static const ContextState context_state = find_context_state();
  unsigned flags = 0;
  int active = 1;
  if (context_state != nullptr && context_state(device, &flags, &active) != 0) active = 1;
  *in_use = active;
  return MPE_OK;
}

}  // namespace cuda
}  // namespace mpembed
