// The kernels of optimizers of the user's own, which mpe_cuda_load_optimizer brings.
#pragma once

#include "cuda/gradient.cuh"

namespace mpembed {
namespace cuda {

// Runs a loaded kernel on at least `threads` threads, in whole blocks of kThreads.
mpe_status launch_loaded(void* kernel, void* stream, int64_t threads, void** arguments);

// A loaded kernel, and the types of its parameters.
template <class... Parameters>
struct LoadedKernel {
  void* kernel = nullptr;

  mpe_status launch(void* stream, int64_t threads, Parameters... arguments) const {
    void* addresses[] = {&arguments...};
    return launch_loaded(kernel, stream, threads, addresses);
  }
};

// Those of own_kernels.cuh.
struct OwnKernels {
  LoadedKernel<Update, HotRows, int32_t, int32_t, uint32_t, mpe_error*> update;
  LoadedKernel<const mpe_parameters*, int64_t, const uint64_t*, float*> coefficients;
};

// Those for a group on the current device.
mpe_status find_own_kernels(const mpe_group& group, OwnKernels* found);

// Computes the coefficients of a group's tables.
mpe_status begin_own_update(const mpe_group& group, const OwnKernels& kernels, void* stream);

}  // namespace cuda
}  // namespace mpembed
