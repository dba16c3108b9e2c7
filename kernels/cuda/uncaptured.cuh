#pragma once

#include "cuda/launch.cuh"

namespace mpembed {
namespace cuda {

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

// For what a graph that is being captured on the stream could not launch again.
inline cudaError_t refuse_capture(cudaStream_t stream) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  const cudaError_t error = cudaStreamIsCapturing(stream, &status);
  if (error != cudaSuccess || status == cudaStreamCaptureStatusNone) return error;
  return cudaErrorStreamCaptureUnsupported;
}

}  // namespace cuda
}  // namespace mpembed
