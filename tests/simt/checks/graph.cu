// Self-tests of the SIMT emulation: captures, graphs and the calls that they forbid.
#include <string.h>

#include <cub/cub.cuh>

#include "checks.h"

namespace {

__global__ void add_kernel(int* p, int n) { *p += n; }

cudaError_t add(int* p, int n, cudaStream_t stream) {
  cudaLaunchConfig_t config{};
  config.gridDim = config.blockDim = dim3(1, 1, 1);
  config.stream = stream;
  return cudaLaunchKernelEx(&config, add_kernel, p, n);
}

cudaStream_t new_stream(unsigned flags = cudaStreamNonBlocking) {
  cudaStream_t stream;
  EXPECT(cudaStreamCreateWithFlags(&stream, flags) == cudaSuccess);
  return stream;
}

cudaStream_t captured(cudaStreamCaptureMode mode = cudaStreamCaptureModeGlobal) {
  const cudaStream_t stream = new_stream();
  EXPECT(cudaStreamBeginCapture(stream, mode) == cudaSuccess);
  return stream;
}

cudaStreamCaptureStatus status_of(cudaStream_t stream, unsigned long long* id = nullptr) {
  cudaStreamCaptureStatus status;
  EXPECT(cudaStreamGetCaptureInfo(stream, &status, id) == cudaSuccess);
  return status;
}

cudaGraphExec_t finish(cudaStream_t stream, unsigned long long flags = 0) {
  cudaGraph_t graph;
  cudaGraphExec_t exec;
  EXPECT(cudaStreamEndCapture(stream, &graph) == cudaSuccess);
  EXPECT(cudaGraphInstantiate(&exec, graph, flags) == cudaSuccess);
  EXPECT(cudaGraphDestroy(graph) == cudaSuccess);
  return exec;
}

// The call was refused and has ended the capture.
#define EXPECT_SPOILED(stream, error, ...)                                             \
  do {                                                                                 \
    EXPECT((__VA_ARGS__) == (error));                                                  \
    EXPECT(status_of(stream) == cudaStreamCaptureStatusInvalidated);                   \
    cudaGraph_t none_;                                                                 \
    EXPECT(cudaStreamEndCapture(stream, &none_) == cudaErrorStreamCaptureInvalidated); \
    EXPECT(none_ == nullptr && status_of(stream) == cudaStreamCaptureStatusNone);      \
    cudaGetLastError();                                                                \
  } while (false)

CHECK(graph_of_kernels) {
  Array<int> value(1);
  unsigned long long id = 0, second = 0;
  const cudaStream_t stream = captured(), other = captured();
  EXPECT(status_of(stream, &id) == cudaStreamCaptureStatusActive && id != 0);
  EXPECT(status_of(other, &second) == cudaStreamCaptureStatusActive && second != id);
  int n = 3;
  EXPECT(add(value.data(), n, stream) == cudaSuccess);
  n = 100;  // a graph keeps the arguments of the call
  EXPECT(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal) == cudaErrorIllegalState);
  const cudaGraphExec_t exec = finish(stream);
  finish(other);
  EXPECT(status_of(stream, &id) == cudaStreamCaptureStatusNone && id == 0);
  EXPECT(value.get()[0] == 0);
  for (int i = 0; i < 4; ++i) EXPECT(cudaGraphLaunch(exec, other) == cudaSuccess);
  EXPECT(value.get()[0] == 12);
  EXPECT(cudaGraphExecDestroy(exec) == cudaSuccess);
  EXPECT(cudaGraphLaunch(exec, other) == cudaErrorInvalidValue);
}

CHECK(graph_copies_at_its_launch) {
  Array<int> value(1);
  int host = 1, back = 0;
  const cudaStream_t stream = captured();
  EXPECT(cudaMemcpyAsync(value.data(), &host, 4, cudaMemcpyDefault, stream) == cudaSuccess);
  EXPECT(cudaMemcpyAsync(&back, value.data(), 4, cudaMemcpyDefault, stream) == cudaSuccess);
  EXPECT(cudaMemsetAsync(value.data(), 0xFF, 4, stream) == cudaSuccess);
  const cudaGraphExec_t exec = finish(stream);
  host = 7;  // and so does memory that has a new owner by now
  EXPECT(cudaGraphLaunch(exec, stream) == cudaSuccess);
  EXPECT(back == 7 && value.get()[0] == -1);
}

CHECK(graph_memory) {
  const cudaStream_t stream = captured();
  int *p, *kept, result = 0;
  EXPECT(cudaMallocAsync(&p, 4, stream) == cudaSuccess);
  EXPECT(cudaMemsetAsync(p, 0, 4, stream) == cudaSuccess);
  EXPECT(add(p, 5, stream) == cudaSuccess);
  EXPECT(cudaMemcpyAsync(&result, p, 4, cudaMemcpyDeviceToHost, stream) == cudaSuccess);
  EXPECT(cudaFreeAsync(p, stream) == cudaSuccess);
  const cudaGraphExec_t exec = finish(stream);
  const auto is_gone = [&] { return cudaMemset(p, 0, 4) == cudaErrorInvalidValue; };
  EXPECT(is_gone() && cudaFreeAsync(p, stream) == cudaErrorInvalidValue);
  for (int i = 0; i < 2; ++i) EXPECT(cudaGraphLaunch(exec, stream) == cudaSuccess && result == 5);
  EXPECT(is_gone() && cudaGraphExecDestroy(exec) == cudaSuccess);
  // Memory that the graph does not free prevents its next launch.
  for (const unsigned long long flags : {0, 1}) {
    EXPECT(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal) == cudaSuccess);
    EXPECT(cudaMallocAsync(&kept, 4, stream) == cudaSuccess);
    const cudaGraphExec_t leaking = finish(stream, flags);
    EXPECT(cudaGraphLaunch(leaking, stream) == cudaSuccess && cudaMemset(kept, 0, 4) == 0);
    EXPECT((cudaGraphLaunch(leaking, stream) == cudaSuccess) == (flags == 1));
    EXPECT(cudaGraphExecDestroy(leaking) == cudaSuccess);
  }
  cudaGetLastError();
}

CHECK(graph_of_cub) {
  using Sort = cub::DeviceRadixSort;
  const cudaStream_t stream = new_stream();
  for (const int bits : {8, 16}) {  // an odd and an even number of passes
    const std::vector<unsigned> keys{500, 3, 77, 3}, values{0, 1, 2, 3};
    Array<unsigned> k(8), v(8);
    Array<char> temporary(4096);
    cub::DoubleBuffer<unsigned> by(k.data(), k.data() + 4), order(v.data(), v.data() + 4);
    size_t bytes = 4096;
    EXPECT(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal) == cudaSuccess);
    for (const auto& [to, from] : {std::pair(k.data(), &keys), std::pair(v.data(), &values)}) {
      EXPECT(cudaMemcpyAsync(to, from->data(), 16, cudaMemcpyHostToDevice, stream) == 0);
    }
    EXPECT(Sort::SortPairs(temporary.data(), bytes, by, order, 4, 0, bits, stream) == 0);
    const cudaGraphExec_t exec = finish(stream);
    for (int i = 0; i < 3; ++i) {
      EXPECT(cudaGraphLaunch(exec, stream) == cudaSuccess);
      unsigned found[4];
      EXPECT(cudaMemcpy(found, order.Current(), 16, cudaMemcpyDeviceToHost) == cudaSuccess);
      EXPECT(found[0] == 1 && found[1] == 3 && found[2] == 2);
    }
  }
}

CHECK(graph_streams) {
  Array<int> value(1);
  const cudaStream_t stream = captured(), fork = new_stream();
  cudaEvent_t event, external, old;
  for (cudaEvent_t* e : {&event, &external, &old}) EXPECT(cudaEventCreate(e) == cudaSuccess);
  EXPECT(cudaEventRecordWithFlags(external, fork, cudaEventRecordExternal) == 1);
  EXPECT(cudaStreamWaitEvent(fork, external, cudaEventWaitExternal) == cudaErrorInvalidValue);
  EXPECT(cudaStreamWaitEvent(stream, external, cudaEventWaitExternal) == cudaSuccess);
  EXPECT(cudaEventRecord(event, stream) == cudaSuccess);
  EXPECT(cudaStreamWaitEvent(fork, event) == cudaSuccess);
  EXPECT(status_of(fork) == cudaStreamCaptureStatusActive);
  EXPECT(add(value.data(), 2, fork) == cudaSuccess);
  EXPECT(cudaEventRecordWithFlags(external, fork, cudaEventRecordExternal) == cudaSuccess);
  EXPECT(cudaEventRecord(event, fork) == cudaSuccess);
  EXPECT(cudaStreamWaitEvent(stream, event) == cudaSuccess);
  const cudaGraphExec_t exec = finish(stream);
  EXPECT(status_of(fork) == cudaStreamCaptureStatusNone);
  float ms;
  EXPECT(cudaEventRecord(old) == cudaSuccess);
  EXPECT(cudaEventElapsedTime(&ms, old, external) == cudaErrorInvalidResourceHandle);
  EXPECT(cudaGraphLaunch(exec, fork) == cudaSuccess && value.get()[0] == 2);
  EXPECT(cudaEventElapsedTime(&ms, old, external) == cudaSuccess && ms >= 0);
  // An event recorded in a capture has no meaning after it.
  EXPECT(cudaStreamWaitEvent(fork, event) == cudaErrorCapturedEvent);
  // A forked stream that is not joined.
  cudaGraph_t none;
  EXPECT(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal) == cudaSuccess);
  EXPECT(cudaEventRecord(event, stream) == 0 && cudaStreamWaitEvent(fork, event) == 0);
  EXPECT(cudaStreamEndCapture(stream, &none) == cudaErrorStreamCaptureUnjoined);
  cudaGetLastError();
}

CHECK(graph_refuses) {
  int *p, *q = nullptr, host = 0;
  cudaEvent_t event;
  EXPECT(cudaMallocAsync(&p, 64, nullptr) == cudaSuccess && cudaEventCreate(&event) == cudaSuccess);
  EXPECT(cudaEventRecord(event) == cudaSuccess);
  const auto spoiled = [](cudaError_t expected, auto call) {
    const cudaStream_t stream = captured();
    EXPECT_SPOILED(stream, expected, call(stream));
    EXPECT(cudaStreamDestroy(stream) == cudaSuccess);
  };
  const cudaError_t unsupported = cudaErrorStreamCaptureUnsupported;
  const cudaStream_t other = new_stream();
  spoiled(unsupported, [](cudaStream_t s) { return cudaStreamSynchronize(s); });
  spoiled(unsupported, [](cudaStream_t s) { return cudaStreamQuery(s); });
  spoiled(unsupported, [&](cudaStream_t) { return cudaStreamSynchronize(other); });
  spoiled(unsupported, [&](cudaStream_t) { return cudaEventQuery(event); });
  spoiled(unsupported, [](cudaStream_t) { return cudaDeviceSynchronize(); });
  spoiled(unsupported, [&](cudaStream_t) { return cudaMalloc(&q, 4); });
  spoiled(unsupported, [&](cudaStream_t) { return cudaFree(p); });
  spoiled(unsupported, [&](cudaStream_t) { return cudaHostAlloc(&q, 4, 0); });
  spoiled(unsupported, [&](cudaStream_t) { return cudaMemcpy(p, &host, 4, cudaMemcpyDefault); });
  spoiled(unsupported, [&](cudaStream_t) { return cudaMemset(p, 0, 4); });
  spoiled(cudaErrorInvalidValue, [&](cudaStream_t s) { return cudaFreeAsync(p, s); });
  spoiled(cudaErrorStreamCaptureIsolation,
          [&](cudaStream_t s) { return cudaStreamWaitEvent(s, event); });
  spoiled(cudaErrorCapturedEvent, [&](cudaStream_t s) {
    EXPECT(cudaEventRecord(event, s) == cudaSuccess);
    return cudaEventSynchronize(event);
  });
  EXPECT(cudaMemset(p, 0, 64) == cudaSuccess &&
         cudaFree(p) == cudaSuccess);  // the memory is still allocated
}

CHECK(graph_modes) {
  int* p;
  for (const auto mode : {cudaStreamCaptureModeThreadLocal, cudaStreamCaptureModeRelaxed}) {
    const cudaStream_t stream = captured(mode);
    const bool refused = cudaMalloc(&p, 4) != cudaSuccess;
    EXPECT(refused == (mode == cudaStreamCaptureModeThreadLocal));
    cudaGraph_t graph;
    EXPECT((cudaStreamEndCapture(stream, &graph) != cudaSuccess) == refused);
    cudaGetLastError();
  }
  EXPECT(cudaStreamBeginCapture(nullptr, cudaStreamCaptureModeGlobal) ==
         cudaErrorStreamCaptureUnsupported);
}

// A thread in relaxed mode may make calls that captures forbid to other threads.
CHECK(graph_thread_mode) {
  int *p, *host;
  const cudaStream_t stream = captured(), other = new_stream();
  cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;
  EXPECT(cudaThreadExchangeStreamCaptureMode(&mode) == cudaSuccess);
  EXPECT(mode == cudaStreamCaptureModeGlobal);
  EXPECT(cudaMalloc(&p, 4) == cudaSuccess && cudaFree(p) == cudaSuccess);
  EXPECT(cudaHostAlloc(&host, 4, 0) == cudaSuccess && cudaFreeHost(host) == cudaSuccess);
  EXPECT(cudaStreamSynchronize(other) == cudaSuccess);
  EXPECT(cudaThreadExchangeStreamCaptureMode(&mode) == cudaSuccess);
  EXPECT(mode == cudaStreamCaptureModeRelaxed);
  EXPECT(status_of(stream) == cudaStreamCaptureStatusActive);
  EXPECT_SPOILED(stream, cudaErrorStreamCaptureUnsupported, cudaMalloc(&p, 4));
}

CHECK(graph_and_the_legacy_stream) {
  Array<int> value(1);
  cudaStreamCaptureStatus status;
  const cudaStream_t free = captured(cudaStreamCaptureModeRelaxed);
  EXPECT(add(value.data(), 1, nullptr) == cudaSuccess);  // the legacy stream does not wait for it
  finish(free);
  const cudaStream_t blocking = new_stream(cudaStreamDefault);
  EXPECT(cudaStreamBeginCapture(blocking, cudaStreamCaptureModeRelaxed) == cudaSuccess);
  EXPECT(cudaStreamIsCapturing(nullptr, &status) == cudaErrorStreamCaptureImplicit);
  EXPECT(status_of(blocking) == cudaStreamCaptureStatusActive);  // a query does not end the capture
  EXPECT_SPOILED(blocking, cudaErrorStreamCaptureImplicit, add(value.data(), 1, nullptr));
  EXPECT(value.get()[0] == 1);
}

}  // namespace
