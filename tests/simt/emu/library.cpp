// The driver's functions for kernels that a program loads: those of a shared object, by its path.
// Linked against the program that loads it, it finds the engine there. SIMT_LOADED_KERNEL makes a
// kernel's name known.
#include <dlfcn.h>

#include <functional>
#include <string>

#include "emu/device_memory.h"
#include "emu/launch.h"

namespace {

using Bind = void (*)(void** arguments, std::function<void()>* body);

}  // namespace

extern "C" {

int simt_load_module(void** module, const void* code) {
  return simt::call([&] {
    *module = dlopen(static_cast<const char*>(code), RTLD_NOW | RTLD_LOCAL);
    return *module != nullptr ? cudaSuccess : cudaErrorNoKernelImageForDevice;
  });
}

int simt_module_function(void** function, void* module, const char* name) {
  return simt::call([&] {
    *function = dlsym(module, (std::string("simt_bind_") + name).c_str());
    return *function != nullptr ? cudaSuccess : cudaErrorSymbolNotFound;
  });
}

int simt_launch_function(void* function, unsigned grid_x, unsigned grid_y, unsigned grid_z,
                         unsigned block_x, unsigned block_y, unsigned block_z, unsigned,
                         cudaStream_t stream, void** arguments, void**) {
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(grid_x, grid_y, grid_z);
  config.blockDim = dim3(block_x, block_y, block_z);
  config.stream = stream;
  std::function<void()> body;
  reinterpret_cast<Bind>(function)(arguments, &body);
  return simt::run_launch(config, function, body);
}
}
