// cudaLaunchKernelEx: runs the kernel at once on the calling thread, or adds it to a graph.
#ifndef SIMT_EMU_LAUNCH_H
#define SIMT_EMU_LAUNCH_H

#include <functional>
#include <type_traits>
#include <utility>

#include "emu/api.h"

namespace simt {

// Calls body once per thread.
cudaError_t run_launch(const cudaLaunchConfig_t& config, const void* kernel,
                       const std::function<void()>& body);

}  // namespace simt

template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
  static_assert((std::is_trivially_copyable<Parameters>::value && ...),
                "kernel parameters are copied bytewise");
  static_assert((sizeof(Parameters) + ... + 0) <= 4096, "4 KiB of kernel parameters at most");
  return [&](Parameters... coerced) {
    return simt::run_launch(*config, reinterpret_cast<const void*>(kernel),
                            [=] { kernel(coerced...); });
  }(std::forward<Arguments>(arguments)...);
}

#endif
