// Streams and events. All work is done when a call returns, so only their rules are checked.
#include "emu/stream.h"

#include <set>

#include "emu/device_memory.h"
#include "emu/graph.h"

namespace simt {
namespace {

// Never destroyed, so that a program's remaining streams are not reported as leaks.
std::set<cudaStream_t>& streams = *new std::set<cudaStream_t>;
std::set<cudaStream_t>& destroyed =
    *new std::set<cudaStream_t>;  // kept, so that no handle is used twice
std::set<cudaEvent_t>& events = *new std::set<cudaEvent_t>;

cudaError_t check_event(cudaEvent_t event) {
  return events.count(event) != 0 ? cudaSuccess : cudaErrorInvalidResourceHandle;
}

void record_now(cudaEvent_t event) {
  event->recorded = true;
  event->capture = 0;
  event->time = std::chrono::steady_clock::now();
}

cudaError_t record(cudaEvent_t event, cudaStream_t stream, bool external) {
  Capture* capture;
  cudaError_t error = enter_stream(stream, &capture);
  if (error == cudaSuccess) error = check_event(event);
  if (error != cudaSuccess) return error;
  if (capture == nullptr) {
    if (external) return cudaErrorInvalidValue;
    record_now(event);
  } else if (external) {
    capture->add(stream, [event] {
      if (check_event(event) != cudaSuccess) return cudaErrorInvalidResourceHandle;
      record_now(event);
      return cudaSuccess;
    });
  } else {
    event->capture = capture->id;
    event->before = capture->seen[stream];
  }
  return cudaSuccess;
}

// A wait for captured work adds the stream to the capture.
cudaError_t join(cudaStream_t stream, Capture* capture, const CUevent_st& event) {
  Capture* other = capture_with(event.capture);
  if (other == nullptr || !other->valid) return cudaErrorCapturedEvent;
  if (capture != nullptr && capture != other) return cudaErrorStreamCaptureMerge;
  if (stream == nullptr || stream == cudaStreamLegacy || stream == cudaStreamPerThread) {
    return other->spoil(cudaErrorStreamCaptureUnsupported);
  }
  stream->capture = other;
  Before& seen = other->seen[stream];
  if (capture == nullptr) seen[stream] = 1;
  for (const auto& [before, work] : event.before) {
    if (seen[before] < work) seen[before] = work;
  }
  return cudaSuccess;
}

cudaError_t wait(cudaStream_t stream, cudaEvent_t event, unsigned flags) {
  Capture* capture;
  cudaError_t error = enter_stream(stream, &capture);
  if (error == cudaSuccess) error = check_event(event);
  if (error != cudaSuccess) return error;
  if ((flags & cudaEventWaitExternal) != 0) {
    if (capture == nullptr) return cudaErrorInvalidValue;
    capture->add(stream, [event] { return check_event(event); });
    return cudaSuccess;
  }
  if (event->capture != 0) return join(stream, capture, *event);
  return capture == nullptr ? cudaSuccess : capture->spoil(cudaErrorStreamCaptureIsolation);
}

// The host waits for a stream or queries it.
cudaError_t wait_for_stream(cudaStream_t stream) {
  Capture* capture;
  const cudaError_t error = enter_stream(stream, &capture);
  if (capture != nullptr) return capture->spoil(cudaErrorStreamCaptureUnsupported);
  return error != cudaSuccess ? error : refuse_unsafe();
}

cudaError_t wait_for_event(cudaEvent_t event) {
  const cudaError_t error = check_event(event);
  if (error != cudaSuccess) return error;
  if (Capture* capture = capture_with(event->capture); capture != nullptr) {
    return capture->spoil(cudaErrorCapturedEvent);
  }
  return refuse_unsafe();
}

}  // namespace

cudaError_t check_stream(cudaStream_t stream) {
  const bool builtin =
      stream == nullptr || stream == cudaStreamLegacy || stream == cudaStreamPerThread;
  return builtin || streams.count(stream) != 0 ? cudaSuccess : cudaErrorInvalidResourceHandle;
}

void fault_if_destroyed(cudaStream_t stream, Site site) {
  if (destroyed.count(stream) != 0) fault(site, "stream %p was destroyed", (void*)stream);
}

}  // namespace simt

using simt::call;

extern "C" {

cudaError_t cudaStreamCreateWithPriority(cudaStream_t* stream, unsigned flags, int priority) {
  return call([&] {
    if (flags > cudaStreamNonBlocking) return cudaErrorInvalidValue;
    *stream = new CUstream_st{flags, priority, simt::current_device(), nullptr};
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
    if (simt::streams.count(stream) == 0) return cudaErrorInvalidResourceHandle;
    simt::forget_stream(stream);
    simt::streams.erase(stream);
    simt::destroyed.insert(stream);
    return cudaSuccess;
  });
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  return call([&] { return simt::wait_for_stream(stream); });
}
cudaError_t cudaStreamQuery(cudaStream_t stream) { return cudaStreamSynchronize(stream); }
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags) {
  return call([&] { return simt::wait(stream, event, flags); });
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned flags) {
  return call([&] {
    *event = new CUevent_st{flags, false, {}, 0, {}};
    simt::events.insert(*event);
    return cudaSuccess;
  });
}
cudaError_t cudaEventCreate(cudaEvent_t* event) {
  return cudaEventCreateWithFlags(event, cudaEventDefault);
}
cudaError_t cudaEventRecordWithFlags(cudaEvent_t event, cudaStream_t stream, unsigned flags) {
  return call([&] { return simt::record(event, stream, (flags & cudaEventRecordExternal) != 0); });
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  return cudaEventRecordWithFlags(event, stream, cudaEventRecordDefault);
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  return call([&] { return simt::wait_for_event(event); });
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
