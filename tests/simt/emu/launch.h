// cudaLaunchKernelEx: runs the kernel at once on the calling thread, or adds it to a graph.
#ifndef SIMT_EMU_LAUNCH_H
#define SIMT_EMU_LAUNCH_H

#include <functional>
#include <tuple>
#include <type_traits>
#include <utility>

#include "emu/api.h"

namespace simt {

// Calls body once per thread.
cudaError_t run_launch(const cudaLaunchConfig_t& config, const void* kernel,
                       const std::function<void()>& body);

// Returns a launch of a kernel with copies of its arguments, which are given by address.
template <class... Parameters, size_t... kPlaces>
std::function<void()> bound(void (*kernel)(Parameters...), void** arguments,
                            std::index_sequence<kPlaces...>) {
  const std::tuple<Parameters...> copied(*static_cast<Parameters*>(arguments[kPlaces])...);
  return [=] { std::apply(kernel, copied); };
}
template <class... Parameters>
std::function<void()> bound(void (*kernel)(Parameters...), void** arguments) {
  return bound(kernel, arguments, std::index_sequence_for<Parameters...>{});
}

}  // namespace simt

// Lets the driver's functions find a kernel of a shared object, see library.cpp.
#define SIMT_LOADED_KERNEL(name)                                                    \
  extern "C" void simt_bind_##name(void** arguments, std::function<void()>* body) { \
    *body = simt::bound(name, arguments);                                           \
  }

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
