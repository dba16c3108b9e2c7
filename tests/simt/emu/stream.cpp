// Streams and events. Everything is done when a call returns, so they only keep their own rules.
#include <chrono>
#include <set>

#include "emu/api.h"
#include "emu/device_memory.h"

struct CUstream_st {
  unsigned flags;
  int priority;
  int device;
};

struct CUevent_st {
  unsigned flags;
  bool recorded;
  std::chrono::steady_clock::time_point time;
};

namespace simt {
namespace {

std::set<cudaStream_t> streams;
std::set<cudaEvent_t> events;

cudaError_t check_event(cudaEvent_t event) {
  return events.count(event) != 0 ? cudaSuccess : cudaErrorInvalidResourceHandle;
}

}  // namespace

cudaError_t check_stream(cudaStream_t stream) {
  const bool builtin =
      stream == nullptr || stream == cudaStreamLegacy || stream == cudaStreamPerThread;
  return builtin || streams.count(stream) != 0 ? cudaSuccess : cudaErrorInvalidResourceHandle;
}

}  // namespace simt

using simt::call;

extern "C" {

cudaError_t cudaStreamCreateWithPriority(cudaStream_t* stream, unsigned flags, int priority) {
  return call([&] {
    if (flags > cudaStreamNonBlocking) return cudaErrorInvalidValue;
    *stream = new CUstream_st{flags, priority, simt::current_device()};
    simt::streams.insert(*stream);
    return cudaSuccess;
  });
}
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags) {
  return cudaStreamCreateWithPriority(stream, flags, 0);
}
cudaError_t cudaStreamCreate(cudaStream_t* stream) {
  return cudaStreamCreateWithPriority(stream, cudaStreamDefault, 0);
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  return call([&] {
    if (simt::streams.erase(stream) == 0) return cudaErrorInvalidResourceHandle;
    delete stream;
    return cudaSuccess;
  });
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  return call([&] { return simt::check_stream(stream); });
}
cudaError_t cudaStreamQuery(cudaStream_t stream) { return cudaStreamSynchronize(stream); }
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  return call([&] {
    const cudaError_t error = simt::check_stream(stream);
    return error != cudaSuccess ? error : simt::check_event(event);
  });
}
cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status) {
  *status = cudaStreamCaptureStatusNone;
  return cudaStreamSynchronize(stream);
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned flags) {
  return call([&] {
    *event = new CUevent_st{flags, false, {}};
    simt::events.insert(*event);
    return cudaSuccess;
  });
}
cudaError_t cudaEventCreate(cudaEvent_t* event) {
  return cudaEventCreateWithFlags(event, cudaEventDefault);
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  return call([&] {
    const cudaError_t bad_stream = simt::check_stream(stream);
    const cudaError_t error = bad_stream != cudaSuccess ? bad_stream : simt::check_event(event);
    if (error != cudaSuccess) return error;
    event->recorded = true;
    event->time = std::chrono::steady_clock::now();
    return cudaSuccess;
  });
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  return call([&] { return simt::check_event(event); });
}
cudaError_t cudaEventQuery(cudaEvent_t event) { return cudaEventSynchronize(event); }
cudaError_t cudaEventElapsedTime(float* ms, cudaEvent_t start, cudaEvent_t end) {
  return call([&] {
    for (const cudaEvent_t e : {start, end}) {
      if (simt::check_event(e) != cudaSuccess || !e->recorded ||
          (e->flags & cudaEventDisableTiming) != 0) {
        return cudaErrorInvalidResourceHandle;
      }
    }
    *ms = std::chrono::duration<float, std::milli>(end->time - start->time).count();
    return cudaSuccess;
  });
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  return call([&] {
    if (simt::events.erase(event) == 0) return cudaErrorInvalidResourceHandle;
    delete event;
    return cudaSuccess;
  });
}
}
