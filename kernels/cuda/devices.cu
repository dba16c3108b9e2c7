// Which devices there are, and which one a thread uses.
#include "cuda/driver.h"
#include "cuda/kernels.h"

namespace mpembed {
namespace cuda {
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
  using ContextState = int (*)(int device, unsigned* flags, int* active);
  static const auto context_state =
      driver_function<ContextState>("cuDevicePrimaryCtxGetState", 7000);
  unsigned flags = 0;
  int active = 1;
  if (context_state != nullptr && context_state(device, &flags, &active) != 0) active = 1;
  *in_use = active;
  return MPE_OK;
}

}  // namespace cuda
}  // namespace mpembed
