// Device memory, streams, events and the runtime's last error.
#include <string>

#include "cuda/kernels.h"
#include "cuda/launch.cuh"
#include "cuda/pool.h"
#include "cuda/staging.h"
#include "cuda/uncaptured.cuh"

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

mpe_status allocate(int64_t bytes, int32_t placement, void** out) {
  const Uncaptured uncaptured;
  const size_t size = static_cast<size_t>(bytes > 0 ? bytes : 1);
  if (placement == MPE_PLACEMENT_HOST) {
    return check(cudaHostAlloc(out, size, cudaHostAllocMapped | cudaHostAllocPortable),
                 "allocating pinned host memory");
  }
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
  return check(pool_allocate(out, size, stream_of(stream)), "allocating workspace");
}

void give_back(void* memory, void* stream) {
  if (pool_free(memory, stream_of(stream)) != cudaSuccess) forget_error();
}

mpe_status copy(void* to, const void* from, int64_t bytes, void* stream) {
  if (bytes <= 0) return MPE_OK;
  const size_t size = static_cast<size_t>(bytes);
  return check(must_be_staged(from)
                   ? copy_staged(to, from, size, stream_of(stream))
                   : cudaMemcpyAsync(to, from, size, cudaMemcpyDefault, stream_of(stream)),
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

mpe_status wait_on_host(void* event) {
  const Uncaptured uncaptured;
  return check(cudaEventSynchronize(static_cast<cudaEvent_t>(event)), "waiting for an event");
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
