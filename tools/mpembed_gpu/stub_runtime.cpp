// A CUDA runtime that runs nothing: it counts the calls that a program makes, kernels by name.
//
// Memory is zero and takes no pages until the host writes it; copies to the host bring zeros. All
// that a program of this project or CUB asks a device for is answered here; every other function
// that the program needs is written by stub.py, counts itself and returns success.
#include <cuda_runtime_api.h>
#include <sys/mman.h>

#include <cstdint>
#include <cstring>
#include <map>
#include <mutex>
#include <string>

namespace {

struct State {
  std::mutex lock;
  std::map<std::string, int64_t> calls, launches;
  std::map<const void*, std::string> names;  // of kernels
  std::map<const char*, size_t> blocks;      // memory
  std::string text;
  intptr_t handles = 0x1000;
};

State& state() {
  static State* made = new State;  // outlives every caller
  return *made;
}

void count(const char* name) {
  const std::lock_guard<std::mutex> guard(state().lock);
  ++state().calls[name];
}

cudaError_t launched(const char* name, const void* kernel) {
  count(name);
  const std::lock_guard<std::mutex> guard(state().lock);
  ++state().launches[state().names[kernel]];
  return cudaSuccess;
}

template <class Handle>
cudaError_t make(Handle* out) {
  const std::lock_guard<std::mutex> guard(state().lock);
  *out = reinterpret_cast<Handle>(++state().handles);
  return cudaSuccess;
}

template <class Pointer>
cudaError_t allocate(Pointer* out, size_t bytes) {
  const size_t size = bytes > 0 ? bytes : 1;
  void* made = mmap(nullptr, size, PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (made == MAP_FAILED) return cudaErrorMemoryAllocation;
  const std::lock_guard<std::mutex> guard(state().lock);
  state().blocks[static_cast<char*>(made)] = size;
  *out = static_cast<Pointer>(made);
  return cudaSuccess;
}

cudaError_t release(void* memory) {
  const std::lock_guard<std::mutex> guard(state().lock);
  const auto found = state().blocks.find(static_cast<char*>(memory));
  if (found == state().blocks.end()) return cudaSuccess;
  munmap(memory, found->second);
  state().blocks.erase(found);
  return cudaSuccess;
}

bool of_device(const void* memory) {
  const std::lock_guard<std::mutex> guard(state().lock);
  auto next = state().blocks.upper_bound(static_cast<const char*>(memory));
  if (next == state().blocks.begin()) return false;
  --next;
  return static_cast<const char*>(memory) < next->first + next->second;
}

cudaError_t copied(void* to, size_t bytes) {
  if (!of_device(to)) std::memset(to, 0, bytes);
  return cudaSuccess;
}

int attribute(int wanted) {
  switch (wanted) {
    case cudaDevAttrMaxThreadsPerBlock:
      return 1024;
    case cudaDevAttrMaxGridDimX:
      return INT32_MAX;
    case cudaDevAttrMaxSharedMemoryPerBlock:
      return 49152;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      return 232448;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
      return 233472;
    case cudaDevAttrMaxThreadsPerMultiProcessor:
      return 2048;
    case cudaDevAttrWarpSize:
      return 32;
    case cudaDevAttrMultiProcessorCount:
      return 132;
    case cudaDevAttrComputeCapabilityMajor:
      return 9;
    case cudaDevAttrMemoryPoolsSupported:
      return 1;
    default:
      return 0;
  }
}

}  // namespace

extern "C" {

#define STUB(name) count(#name)

// ---- for stub.py ------------------------------------------------------------------------------

void stub_count(const char* name) { count(name); }

void stub_reset() {
  const std::lock_guard<std::mutex> guard(state().lock);
  state().calls.clear();
  state().launches.clear();
}

// Lines of "call NAME COUNT" and "launch KERNEL COUNT".
const char* stub_report() {
  const std::lock_guard<std::mutex> guard(state().lock);
  std::string& text = state().text;
  text.clear();
  for (const auto& [name, n] : state().calls) {
    text += "call " + name + " " + std::to_string(n) + "\n";
  }
  for (const auto& [name, n] : state().launches) {
    text += "launch " + name + " " + std::to_string(n) + "\n";
  }
  return text.c_str();
}

// ---- kernels ----------------------------------------------------------------------------------

void** __cudaRegisterFatBinary(void*) {
  static void* handle = nullptr;
  return &handle;
}
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}
void __cudaRegisterVar(void**, char*, char*, const char*, int, size_t, int, int) {}
char __cudaInitModule(void**) { return 0; }
void __cudaRegisterFunction(void**, const char* host, char*, const char* name, int, uint3*, uint3*,
                            dim3*, dim3*, int*) {
  const std::lock_guard<std::mutex> guard(state().lock);
  state().names[host] = name;
}
cudaError_t __cudaGetKernel(cudaKernel_t* out, const void* kernel) {
  *out = static_cast<cudaKernel_t>(const_cast<void*>(kernel));
  return cudaSuccess;
}
cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3, dim3, void**, size_t, cudaStream_t) {
  return launched("cudaLaunchKernel", kernel);
}
cudaError_t cudaLaunchKernel(const void* kernel, dim3, dim3, void**, size_t, cudaStream_t) {
  return launched("cudaLaunchKernel", kernel);
}
cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t*, const void* kernel, void**) {
  return launched("cudaLaunchKernelExC", kernel);
}

thread_local struct {
  dim3 grid, block;
  size_t shared;
  void* stream;
} configuration;

unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, cudaStream_t stream) {
  configuration = {grid, block, shared, stream};
  return 0;
}
cudaError_t __cudaPopCallConfiguration(dim3* grid, dim3* block, size_t* shared, void* stream) {
  *grid = configuration.grid;
  *block = configuration.block;
  *shared = configuration.shared;
  *static_cast<void**>(stream) = configuration.stream;
  return cudaSuccess;
}
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* out, const void*) {
  STUB(cudaFuncGetAttributes);
  *out = cudaFuncAttributes{};
  out->maxThreadsPerBlock = 1024;
  out->ptxVersion = out->binaryVersion = 80;
  return cudaSuccess;
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void*, int, size_t) {
  STUB(cudaOccupancyMaxActiveBlocksPerMultiprocessor);
  return *blocks = 4, cudaSuccess;
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* blocks, const void*, int,
                                                                   size_t, unsigned) {
  STUB(cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags);
  return *blocks = 4, cudaSuccess;
}

// ---- devices ----------------------------------------------------------------------------------

cudaError_t cudaGetDeviceCount(int* out) {
  STUB(cudaGetDeviceCount);
  return *out = 1, cudaSuccess;
}
cudaError_t cudaGetDevice(int* out) {
  STUB(cudaGetDevice);
  return *out = 0, cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* out, cudaDeviceAttr wanted, int) {
  STUB(cudaDeviceGetAttribute);
  return *out = attribute(wanted), cudaSuccess;
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* out, int) {
  STUB(cudaGetDeviceProperties);
  std::memset(out, 0, sizeof(*out));
  std::strcpy(out->name, "stub");
  out->totalGlobalMem = size_t{1} << 37;
  out->major = 9;
  return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int* out) { return *out = CUDART_VERSION, cudaSuccess; }
cudaError_t cudaDriverGetVersion(int* out) { return *out = CUDART_VERSION, cudaSuccess; }
const char* cudaGetErrorString(cudaError_t) { return "an error of the stub"; }
const char* cudaGetErrorName(cudaError_t) { return "stub"; }
cudaError_t cudaGetDriverEntryPointByVersion(const char*, void** out, unsigned, unsigned long long,
                                             cudaDriverEntryPointQueryResult* found) {
  STUB(cudaGetDriverEntryPointByVersion);
  *out = nullptr;
  if (found != nullptr) *found = cudaDriverEntryPointSymbolNotFound;
  return cudaSuccess;
}

// ---- memory -----------------------------------------------------------------------------------

cudaError_t cudaMalloc(void** out, size_t bytes) {
  STUB(cudaMalloc);
  return allocate(out, bytes);
}
cudaError_t cudaMallocAsync(void** out, size_t bytes, cudaStream_t) {
  STUB(cudaMallocAsync);
  return allocate(out, bytes);
}
cudaError_t cudaMallocFromPoolAsync(void** out, size_t bytes, cudaMemPool_t, cudaStream_t) {
  STUB(cudaMallocFromPoolAsync);
  return allocate(out, bytes);
}
cudaError_t cudaHostAlloc(void** out, size_t bytes, unsigned) {
  STUB(cudaHostAlloc);
  return allocate(out, bytes);
}
cudaError_t cudaMallocHost(void** out, size_t bytes) {
  STUB(cudaMallocHost);
  return allocate(out, bytes);
}
cudaError_t cudaFree(void* memory) {
  STUB(cudaFree);
  return release(memory);
}
cudaError_t cudaFreeAsync(void* memory, cudaStream_t) {
  STUB(cudaFreeAsync);
  return release(memory);
}
cudaError_t cudaFreeHost(void* memory) {
  STUB(cudaFreeHost);
  return release(memory);
}
cudaError_t cudaHostGetDevicePointer(void** out, void* host, unsigned) {
  STUB(cudaHostGetDevicePointer);
  return *out = host, cudaSuccess;
}
cudaError_t cudaMemcpy(void* to, const void*, size_t bytes, cudaMemcpyKind) {
  STUB(cudaMemcpy);
  return copied(to, bytes);
}
cudaError_t cudaMemcpyAsync(void* to, const void*, size_t bytes, cudaMemcpyKind, cudaStream_t) {
  STUB(cudaMemcpyAsync);
  return copied(to, bytes);
}
cudaError_t cudaMemGetInfo(size_t* left, size_t* all) {
  STUB(cudaMemGetInfo);
  return *left = *all = size_t{1} << 37, cudaSuccess;
}
cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* out, const void* memory) {
  STUB(cudaPointerGetAttributes);
  *out = cudaPointerAttributes{};
  out->type = of_device(memory) ? cudaMemoryTypeDevice : cudaMemoryTypeUnregistered;
  return cudaSuccess;
}
cudaError_t cudaMemPoolCreate(cudaMemPool_t* out, const cudaMemPoolProps*) {
  STUB(cudaMemPoolCreate);
  return make(out);
}
cudaError_t cudaDeviceGetDefaultMemPool(cudaMemPool_t* out, int) {
  STUB(cudaDeviceGetDefaultMemPool);
  return make(out);
}

// ---- streams and events -----------------------------------------------------------------------

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* out, unsigned) {
  STUB(cudaStreamCreateWithFlags);
  return make(out);
}
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* out, unsigned) {
  STUB(cudaEventCreateWithFlags);
  return make(out);
}
cudaError_t cudaEventCreate(cudaEvent_t* out) {
  STUB(cudaEventCreate);
  return make(out);
}
cudaError_t cudaStreamIsCapturing(cudaStream_t, cudaStreamCaptureStatus* out) {
  STUB(cudaStreamIsCapturing);
  return *out = cudaStreamCaptureStatusNone, cudaSuccess;
}
cudaError_t cudaStreamGetCaptureInfo(cudaStream_t, cudaStreamCaptureStatus* out,
                                     unsigned long long* id, cudaGraph_t*, const cudaGraphNode_t**,
                                     const cudaGraphEdgeData**, size_t*) {
  STUB(cudaStreamGetCaptureInfo);
  *out = cudaStreamCaptureStatusNone;
  if (id != nullptr) *id = 0;
  return cudaSuccess;
}
cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode*) {
  STUB(cudaThreadExchangeStreamCaptureMode);
  return cudaSuccess;
}

}  // extern "C"
