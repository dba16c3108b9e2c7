// Errors, devices and kernels' attributes.
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <atomic>
#include <map>
#include <string>

#include "emu/api.h"
#include "emu/device_memory.h"
#include "emu/graph.h"
#include "emu/options.h"

struct CUmemPoolHandle_st {
  uint64_t release_threshold;
};

extern "C" {
int simt_context_state(int device, unsigned* flags, int* active);
int simt_load_module(void** module, const void* code);
int simt_module_function(void** function, void* module, const char* name);
int simt_launch_function(void* function, unsigned grid_x, unsigned grid_y, unsigned grid_z,
                         unsigned block_x, unsigned block_y, unsigned block_z, unsigned shared,
                         cudaStream_t stream, void** arguments, void** extra);
}

namespace simt {
namespace {

cudaError_t sticky_error = cudaSuccess;
thread_local cudaError_t last_error = cudaSuccess;
thread_local int device = 0;
CUmemPoolHandle_st pools[16];
std::atomic<bool> has_context[16];

bool is_device_number(int d) { return d >= 0 && d < options().devices; }

cudaError_t attribute(int* value, cudaDeviceAttr which) {
  switch (static_cast<int>(which)) {
    case cudaDevAttrMaxThreadsPerBlock:
    case cudaDevAttrMaxBlockDimX:
    case cudaDevAttrMaxBlockDimY:
      *value = 1024;
      break;
    case cudaDevAttrMaxBlockDimZ:
      *value = 64;
      break;
    case cudaDevAttrMaxGridDimX:
      *value = 0x7FFFFFFF;
      break;
    case cudaDevAttrMaxGridDimY:
    case cudaDevAttrMaxGridDimZ:
      *value = 65535;
      break;
    case cudaDevAttrMaxSharedMemoryPerBlock:
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
      *value = 48 * 1024;
      break;
    case cudaDevAttrWarpSize:
      *value = 32;
      break;
    case cudaDevAttrMaxRegistersPerBlock:
    case cudaDevAttrMaxRegistersPerMultiprocessor:
      *value = 65536;
      break;
    case cudaDevAttrMultiProcessorCount:
      *value = options().multiprocessors;
      break;
    case cudaDevAttrL2CacheSize:
      *value = 4 << 20;
      break;
    case cudaDevAttrMaxThreadsPerMultiProcessor:
      *value = 2048;
      break;
    case cudaDevAttrMaxBlocksPerMultiprocessor:
      *value = 32;
      break;
    case cudaDevAttrComputeCapabilityMajor:
      *value = 8;
      break;
    case cudaDevAttrClockRate:
    case cudaDevAttrMemoryClockRate:
      *value = 1000000;  // kHz
      break;
    case cudaDevAttrGlobalMemoryBusWidth:
      *value = 128;
      break;
    case cudaDevAttrCanMapHostMemory:
    case cudaDevAttrUnifiedAddressing:
    case cudaDevAttrStreamPrioritiesSupported:
      *value = 1;
      break;
    case cudaDevAttrMemoryPoolsSupported:
      *value = options().pools;
      break;
    case cudaDevAttrPageableMemoryAccess:
      *value = options().pageable;
      break;
    default:
      *value = 0;
  }
  return cudaSuccess;
}

}  // namespace

std::recursive_mutex& runtime_mutex() {
  static std::recursive_mutex mutex;
  return mutex;
}

Counts& counts() {
  static Counts all{};
  return all;
}

cudaError_t set_error(cudaError_t error) {
  if (sticky_error != cudaSuccess) return sticky_error;
  if (error != cudaSuccess) last_error = error;
  return error;
}

void set_sticky_error(cudaError_t error) { sticky_error = error; }

int current_device() { return device; }

void use_context() { has_context[device] = true; }

}  // namespace simt

using simt::call;

extern "C" {

#define SIMT_ERROR_NAME(name, value, text) \
  case name:                               \
    return #name;
#define SIMT_ERROR_TEXT(name, value, text) \
  case name:                               \
    return text;
const char* cudaGetErrorName(cudaError_t error) {
  switch (error) { SIMT_ERRORS(SIMT_ERROR_NAME) }
  return "unrecognized error code";
}
const char* cudaGetErrorString(cudaError_t error) {
  switch (error) { SIMT_ERRORS(SIMT_ERROR_TEXT) }
  return "unrecognized error code";
}

cudaError_t cudaPeekAtLastError(void) {
  return simt::sticky_error != cudaSuccess ? simt::sticky_error : simt::last_error;
}
cudaError_t cudaGetLastError(void) {
  const std::lock_guard<std::recursive_mutex> lock(simt::runtime_mutex());
  ++simt::counts().calls;
  const cudaError_t error = cudaPeekAtLastError();
  simt::last_error = cudaSuccess;
  return error;
}

cudaError_t cudaRuntimeGetVersion(int* version) {
  *version = CUDART_VERSION;
  return cudaSuccess;
}
cudaError_t cudaDriverGetVersion(int* version) { return cudaRuntimeGetVersion(version); }

cudaError_t cudaGetDeviceCount(int* count) {
  return call([&] {
    *count = simt::options().devices;
    return *count == 0 ? cudaErrorNoDevice : cudaSuccess;
  });
}
cudaError_t cudaGetDevice(int* d) {
  return call([&] {
    *d = simt::device;
    return cudaSuccess;
  });
}
cudaError_t cudaSetDevice(int d) {
  return call([&] {
    if (!simt::is_device_number(d)) return cudaErrorInvalidDevice;
    simt::device = d;
    simt::use_context();
    return cudaSuccess;
  });
}
cudaError_t cudaDeviceSynchronize(void) {
  return call([] { return simt::refuse_unsafe(); });
}
int64_t simt_calls(void) { return simt::counts().calls; }
int64_t simt_copies(void) { return simt::counts().copies; }
int64_t simt_fills(void) { return simt::counts().fills; }
int64_t simt_allocations(void) { return simt::counts().allocations; }

cudaError_t cudaDeviceReset(void) {
  const std::lock_guard<std::recursive_mutex> lock(simt::runtime_mutex());
  simt::release_all_memory();
  simt::sticky_error = simt::last_error = cudaSuccess;
  return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int d) {
  return call([&] {
    return simt::is_device_number(d) ? simt::attribute(value, attribute) : cudaErrorInvalidDevice;
  });
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* p, int d) {
  return call([&] {
    if (!simt::is_device_number(d)) return cudaErrorInvalidDevice;
    memset(p, 0, sizeof *p);
    snprintf(p->name, sizeof p->name, "SIMT emulation");
    p->totalGlobalMem = simt::options().memory_bytes;
    p->sharedMemPerBlock = p->sharedMemPerBlockOptin = p->sharedMemPerMultiprocessor = 48 * 1024;
    p->regsPerBlock = p->regsPerMultiprocessor = 65536;
    p->warpSize = 32;
    p->maxThreadsPerBlock = p->maxThreadsDim[0] = p->maxThreadsDim[1] = 1024;
    p->maxThreadsDim[2] = 64;
    p->maxGridSize[0] = 0x7FFFFFFF;
    p->maxGridSize[1] = p->maxGridSize[2] = 65535;
    p->major = 8;
    p->multiProcessorCount = simt::options().multiprocessors;
    p->canMapHostMemory = p->unifiedAddressing = 1;
    p->memoryPoolsSupported = simt::options().pools;
    p->memoryBusWidth = 128;
    p->l2CacheSize = 4 << 20;
    p->maxThreadsPerMultiProcessor = 2048;
    p->pciBusID = d;
    return cudaSuccess;
  });
}
cudaError_t cudaDeviceGetStreamPriorityRange(int* least, int* greatest) {
  *least = 0;
  *greatest = -5;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetDefaultMemPool(cudaMemPool_t* pool, int d) {
  return call([&] {
    if (!simt::is_device_number(d)) return cudaErrorInvalidDevice;
    *pool = &simt::pools[d];
    return cudaSuccess;
  });
}
cudaError_t cudaMemPoolSetAttribute(cudaMemPool_t pool, cudaMemPoolAttr a, void* value) {
  return call([&] {
    if (a == cudaMemPoolAttrReleaseThreshold) memcpy(&pool->release_threshold, value, 8);
    return cudaSuccess;
  });
}
cudaError_t cudaMemPoolGetAttribute(cudaMemPool_t pool, cudaMemPoolAttr a, void* value) {
  return call([&] {
    if (a != cudaMemPoolAttrReleaseThreshold) return cudaErrorNotSupported;
    memcpy(value, &pool->release_threshold, 8);
    return cudaSuccess;
  });
}
cudaError_t cudaMemPoolCreate(cudaMemPool_t* pool, const cudaMemPoolProps* properties) {
  return call([&] {
    if (!simt::options().pools) return cudaErrorNotSupported;
    const bool known = properties->allocType == cudaMemAllocationTypePinned &&
                       properties->handleTypes == cudaMemHandleTypeNone &&
                       properties->location.type == cudaMemLocationTypeDevice;
    if (!known || !simt::is_device_number(properties->location.id)) return cudaErrorInvalidValue;
    *pool = new CUmemPoolHandle_st{};
    return cudaSuccess;
  });
}
cudaError_t cudaMemPoolTrimTo(cudaMemPool_t, size_t) {
  return call([] { return cudaSuccess; });
}

int simt_context_state(int d, unsigned* flags, int* active) {
  if (!simt::is_device_number(d)) return cudaErrorInvalidDevice;
  *flags = 0;
  *active = simt::has_context[d];
  return cudaSuccess;
}
cudaError_t cudaGetDriverEntryPointByVersion(const char* symbol, void** function, unsigned,
                                             unsigned long long,
                                             cudaDriverEntryPointQueryResult* result) {
  static const std::map<std::string, void*> functions = {
      {"cuDevicePrimaryCtxGetState", reinterpret_cast<void*>(simt_context_state)},
      {"cuModuleLoadData", reinterpret_cast<void*>(simt_load_module)},
      {"cuModuleGetFunction", reinterpret_cast<void*>(simt_module_function)},
      {"cuLaunchKernel", reinterpret_cast<void*>(simt_launch_function)},
  };
  const auto found = functions.find(symbol);
  *function = found != functions.end() ? found->second : nullptr;
  *result = *function != nullptr ? cudaDriverEntryPointSuccess : cudaDriverEntryPointSymbolNotFound;
  return cudaSuccess;
}

cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void* kernel) {
  return call([&] {
    if (kernel == nullptr) return cudaErrorInvalidDeviceFunction;
    memset(attributes, 0, sizeof *attributes);
    attributes->maxThreadsPerBlock = 1024;
    attributes->numRegs = 32;
    attributes->ptxVersion = attributes->binaryVersion = 80;
    return cudaSuccess;
  });
}
cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute, int) {
  return call([&] { return kernel == nullptr ? cudaErrorInvalidDeviceFunction : cudaSuccess; });
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void* kernel,
                                                          int block_size, size_t) {
  return call([&] {
    if (kernel == nullptr) return cudaErrorInvalidDeviceFunction;
    if (block_size < 1 || block_size > 1024) return cudaErrorInvalidValue;
    const int fit = 2048 / ((block_size + 31) / 32 * 32);
    *blocks = fit < 32 ? fit : 32;
    return cudaSuccess;
  });
}
}
