// Device memory, streams, events, devices and the runtime's last error.
#include <atomic>
#include <string>

#include "cuda/kernels.h"
#include "cuda/launch.cuh"

namespace mpembed {
namespace cuda {
namespace {

thread_local std::string g_message = "no call has failed";

}  // namespace

mpe_status failed(cudaError_t error, const char* operation) {
  g_message = std::string(operation) + ": " + cudaGetErrorString(error) + " (" +
              cudaGetErrorName(error) + ")";
  forget_error();
  return error == cudaErrorMemoryAllocation ? MPE_ERR_MEMORY : MPE_ERR_DEVICE;
}

const char* last_error() { return g_message.c_str(); }

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

namespace {

// All workspace comes from a device's memory pool. By default the pool returns unused memory at
// each synchronisation; this makes it keep the memory. Done once per device; not every device has
// pools.
void keep_workspace() {
  static std::atomic<uint64_t> kept{0};
  int device = 0;
  cudaMemPool_t pool;
  if (cudaGetDevice(&device) != cudaSuccess || device >= 64) return;
  if ((kept.fetch_or(uint64_t{1} << device) >> device & 1) != 0) return;
  uint64_t all = UINT64_MAX;
  if (cudaDeviceGetDefaultMemPool(&pool, device) != cudaSuccess ||
      cudaMemPoolSetAttribute(pool, cudaMemPoolAttrReleaseThreshold, &all) != cudaSuccess) {
    forget_error();
  }
}

// While another thread captures a graph, CUDA forbids this thread to allocate, free or wait, and
// ends the capture if it does. Nothing in this scope is part of a graph, so it lifts the
// restriction.
class Uncaptured {
 public:
  Uncaptured() { exchange(); }
  ~Uncaptured() { exchange(); }
  Uncaptured(const Uncaptured&) = delete;
  Uncaptured& operator=(const Uncaptured&) = delete;

 private:
  void exchange() {
    if (cudaThreadExchangeStreamCaptureMode(&mode_) != cudaSuccess) forget_error();
  }
  cudaStreamCaptureMode mode_ = cudaStreamCaptureModeRelaxed;
};

}  // namespace

mpe_status allocate(int64_t bytes, int32_t placement, void** out) {
  const Uncaptured uncaptured;
  const size_t size = static_cast<size_t>(bytes > 0 ? bytes : 1);
  if (placement == MPE_PLACEMENT_HOST) {
    return check(cudaHostAlloc(out, size, cudaHostAllocMapped | cudaHostAllocPortable),
                 "allocating pinned host memory");
  }
  keep_workspace();
  return check(cudaMalloc(out, size), "allocating device memory");
}

void release(void* memory, int32_t placement) {
  const Uncaptured uncaptured;
  const cudaError_t error =
      placement == MPE_PLACEMENT_HOST ? cudaFreeHost(memory) : cudaFree(memory);
  if (error != cudaSuccess) forget_error();
}

mpe_status borrow(int64_t bytes, void* stream, void** out) {
  const size_t size = static_cast<size_t>(bytes > 0 ? bytes : 1);
  return check(cudaMallocAsync(out, size, stream_of(stream)), "allocating workspace");
}

void give_back(void* memory, void* stream) {
  if (cudaFreeAsync(memory, stream_of(stream)) != cudaSuccess) forget_error();
}

mpe_status copy(void* to, const void* from, int64_t bytes, void* stream) {
  if (bytes <= 0) return MPE_OK;
  return check(
      cudaMemcpyAsync(to, from, static_cast<size_t>(bytes), cudaMemcpyDefault, stream_of(stream)),
      "copying");
}

mpe_status fill(void* memory, int32_t byte, int64_t bytes, void* stream) {
  if (bytes <= 0) return MPE_OK;
  return check(cudaMemsetAsync(memory, byte, static_cast<size_t>(bytes), stream_of(stream)),
               "filling");
}

mpe_status synchronize(void* stream) {
  const Uncaptured uncaptured;
  return check(cudaStreamSynchronize(stream_of(stream)), "waiting for the stream");
}

mpe_status create_event(void** out) {
  cudaEvent_t event = nullptr;
  const mpe_status status =
      check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "creating an event");
  *out = event;
  return status;
}

void destroy_event(void* event) {
  if (cudaEventDestroy(static_cast<cudaEvent_t>(event)) != cudaSuccess) forget_error();
}

mpe_status record(void* event, void* stream) {
  return check(cudaEventRecord(static_cast<cudaEvent_t>(event), stream_of(stream)),
               "recording an event");
}

mpe_status wait(void* event, void* stream) {
  return check(cudaStreamWaitEvent(stream_of(stream), static_cast<cudaEvent_t>(event), 0),
               "waiting for an event");
}

mpe_status capturing(void* stream, uint64_t* capture) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  unsigned long long id = 0;
  *capture = 0;
  const cudaError_t error = cudaStreamGetCaptureInfo(stream_of(stream), &status, &id);
  if (error == cudaErrorStreamCaptureImplicit) {
    return failed(error, "using the default stream while another stream is captured");
  }
  if (error != cudaSuccess) {  // a runtime without graphs
    forget_error();
  } else if (status != cudaStreamCaptureStatusNone) {  // a capture that failed has no number
    *capture = status == cudaStreamCaptureStatusActive ? id : UINT64_MAX;
  }
  return MPE_OK;
}

mpe_status wait_in_graph(void* event, void* stream) {
  return check(cudaStreamWaitEvent(stream_of(stream), static_cast<cudaEvent_t>(event),
                                   cudaEventWaitExternal),
               "waiting for an event in a graph");
}

mpe_status record_in_graph(void* event, void* stream) {
  return check(cudaEventRecordWithFlags(static_cast<cudaEvent_t>(event), stream_of(stream),
                                        cudaEventRecordExternal),
               "recording an event in a graph");
}

}  // namespace cuda
}  // namespace mpembed
