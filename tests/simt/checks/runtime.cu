// Self-tests of the SIMT emulation: the runtime's memory, streams, events and errors.
#include <string.h>

#include "checks.h"

namespace {

CHECK(new_memory) {
  unsigned char* p;
  EXPECT(cudaMalloc(&p, 1000) == cudaSuccess);
  EXPECT(reinterpret_cast<uintptr_t>(p) % 256 == 0);
  unsigned char host[1000];
  EXPECT(cudaMemcpy(host, p, 1000, cudaMemcpyDeviceToHost) == cudaSuccess);
  for (unsigned char c : host) EXPECT(c == 0xA5);
  EXPECT(cudaMemset(p, 7, 999) == cudaSuccess);
  EXPECT(cudaMemcpy(host, p, 1000, cudaMemcpyDefault) == cudaSuccess);
  EXPECT(host[0] == 7 && host[998] == 7 && host[999] == 0xA5);
  EXPECT(cudaFree(p) == cudaSuccess && cudaFree(nullptr) == cudaSuccess);
  EXPECT(cudaMalloc(&p, 0) == cudaSuccess && p == nullptr);
}

CHECK(bad_free) {
  int *p, *pinned, host = 0;
  EXPECT(cudaMalloc(&p, 64) == cudaSuccess);
  EXPECT(cudaHostAlloc(&pinned, 64, cudaHostAllocMapped) == cudaSuccess);
  EXPECT(cudaFree(p + 1) == cudaErrorInvalidValue);
  EXPECT(cudaFree(&host) == cudaErrorInvalidValue);
  EXPECT(cudaFree(pinned) == cudaErrorInvalidValue && cudaFreeHost(p) == cudaErrorInvalidValue);
  EXPECT(cudaFree(p) == cudaSuccess && cudaFree(p) == cudaErrorInvalidValue);
  EXPECT(cudaFreeHost(pinned) == cudaSuccess && cudaFreeHost(pinned) == cudaErrorInvalidValue);
  EXPECT(cudaPeekAtLastError() == cudaErrorInvalidValue);
  EXPECT(cudaGetLastError() == cudaErrorInvalidValue && cudaGetLastError() == cudaSuccess);
}

CHECK(copies) {
  char *p, *q, host[128] = "text";
  EXPECT(cudaMalloc(&p, 100) == cudaSuccess && cudaMallocAsync(&q, 100, nullptr) == cudaSuccess);
  EXPECT(cudaMemcpy(p, host, 100, cudaMemcpyHostToDevice) == cudaSuccess);
  EXPECT(cudaMemcpyAsync(q, p, 100, cudaMemcpyDeviceToDevice) == cudaSuccess);
  char back[128];
  EXPECT(cudaMemcpy(back, q, 100, cudaMemcpyDeviceToHost) == cudaSuccess);
  EXPECT(memcmp(host, back, 100) == 0);
  EXPECT(cudaMemcpy(p, host, 101, cudaMemcpyHostToDevice) == cudaErrorInvalidValue);
  EXPECT(cudaMemcpy(p + 1, host, 100, cudaMemcpyHostToDevice) == cudaErrorInvalidValue);
  EXPECT(cudaMemcpy(host, p - 1, 1, cudaMemcpyDeviceToHost) == cudaErrorInvalidValue);
  EXPECT(cudaMemcpy(host, back, 10, cudaMemcpyHostToDevice) == cudaErrorInvalidValue);
  EXPECT(cudaMemcpy(p, host, 10, cudaMemcpyDeviceToHost) == cudaErrorInvalidValue);
  EXPECT(cudaMemcpy(p, p + 5, 10, cudaMemcpyDeviceToDevice) == cudaErrorInvalidValue);
  EXPECT(cudaMemset(p, 0, 101) == cudaErrorInvalidValue);
  EXPECT(cudaMemset(host, 0, 1) == cudaErrorInvalidValue);
  EXPECT(cudaFreeAsync(q, nullptr) == cudaSuccess);
  EXPECT(cudaMemcpy(host, q, 1, cudaMemcpyDeviceToHost) == cudaErrorInvalidValue);
  EXPECT(cudaMemcpy(nullptr, nullptr, 0, cudaMemcpyHostToDevice) == cudaSuccess);
  EXPECT(cudaFree(p) == cudaSuccess);
}

__global__ void write_one(int* p) { *p = 1; }

CHECK(pinned) {
  int *host, *device;
  EXPECT(cudaHostAlloc(&host, 4, cudaHostAllocMapped) == cudaSuccess);
  EXPECT(cudaHostGetDevicePointer(reinterpret_cast<void**>(&device), host, 0) == cudaSuccess);
  EXPECT(start(write_one, 1, 1, device) == cudaSuccess && *host == 1);
  cudaPointerAttributes a;
  EXPECT(cudaPointerGetAttributes(&a, host) == cudaSuccess && a.type == cudaMemoryTypeHost);
  EXPECT(cudaPointerGetAttributes(&a, &a) == cudaSuccess);
  EXPECT(a.type == cudaMemoryTypeUnregistered);
  Array<int> x(3);
  EXPECT(cudaPointerGetAttributes(&a, x.data() + 2) == cudaSuccess);
  EXPECT(a.type == cudaMemoryTypeDevice && a.devicePointer == x.data() + 2 && a.device == 0);
  EXPECT(cudaFreeHost(host) == cudaSuccess);
}

CHECK(streams) {
  cudaStream_t stream;
  cudaEvent_t begin, end;
  EXPECT(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking) == cudaSuccess);
  EXPECT(cudaEventCreate(&begin) == cudaSuccess && cudaEventCreate(&end) == cudaSuccess);
  EXPECT(cudaEventRecord(begin, stream) == cudaSuccess);
  Array<int> x(1);
  cudaLaunchConfig_t config{};
  config.gridDim = config.blockDim = dim3(1);
  config.stream = stream;
  EXPECT(cudaLaunchKernelEx(&config, write_one, x.data()) == cudaSuccess);
  float ms = -1;
  EXPECT(cudaEventElapsedTime(&ms, begin, end) == cudaErrorInvalidResourceHandle);
  EXPECT(cudaEventRecord(end, stream) == cudaSuccess && cudaEventSynchronize(end) == cudaSuccess);
  EXPECT(cudaEventElapsedTime(&ms, begin, end) == cudaSuccess && ms >= 0);
  EXPECT(cudaStreamWaitEvent(nullptr, end, 0) == cudaSuccess);
  EXPECT(cudaStreamQuery(stream) == cudaSuccess && cudaStreamSynchronize(stream) == cudaSuccess);
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusActive;
  EXPECT(cudaStreamIsCapturing(stream, &status) == cudaSuccess);
  EXPECT(status == cudaStreamCaptureStatusNone);
  EXPECT(cudaEventDestroy(begin) == cudaSuccess && cudaEventDestroy(end) == cudaSuccess);
  EXPECT(cudaStreamDestroy(stream) == cudaSuccess && x.get()[0] == 1);
#if defined(MPE_SIMT)  // hardware may crash
  EXPECT(cudaStreamSynchronize(stream) == cudaErrorInvalidResourceHandle);
  EXPECT(cudaLaunchKernelEx(&config, write_one, x.data()) == cudaErrorInvalidResourceHandle);
  EXPECT(cudaEventRecord(begin, nullptr) == cudaErrorInvalidResourceHandle);
#endif
}

CHECK(launch_limits) {
  Array<int> x(1);
  const dim3 bad[][2] = {{0, 1}, {1, 0}, {1, 1025}, {dim3(1, 65536), 1}, {1, dim3(1, 1, 65)}};
  for (const auto& shape : bad) {
    EXPECT(start(write_one, shape[0], shape[1], x.data()) == cudaErrorInvalidConfiguration);
    EXPECT(cudaGetLastError() == cudaErrorInvalidConfiguration);
  }
  EXPECT(cudaDeviceSynchronize() == cudaSuccess && x.get()[0] == 0);
  EXPECT(strcmp(cudaGetErrorName(cudaErrorInvalidValue), "cudaErrorInvalidValue") == 0);
  EXPECT(strcmp(cudaGetErrorString(cudaErrorInvalidValue), "invalid argument") == 0);
}

CHECK(device) {
  int n = 0, value = 0;
  EXPECT(cudaGetDeviceCount(&n) == cudaSuccess && n >= 1);
  EXPECT(cudaSetDevice(n) == cudaErrorInvalidDevice && cudaSetDevice(0) == cudaSuccess);
  EXPECT(cudaDeviceGetAttribute(&value, cudaDevAttrWarpSize, 0) == cudaSuccess && value == 32);
  cudaDeviceProp properties;
  EXPECT(cudaGetDeviceProperties(&properties, 0) == cudaSuccess && properties.warpSize == 32);
  EXPECT(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&value, write_one, 256, 0) == cudaSuccess);
  EXPECT(value >= 1);
  cudaFuncAttributes attributes;
  EXPECT(cudaFuncGetAttributes(&attributes, write_one) == cudaSuccess && attributes.numRegs > 0);
  cudaMemPool_t pool;
  uint64_t threshold = UINT64_MAX;
  EXPECT(cudaDeviceGetDefaultMemPool(&pool, 0) == cudaSuccess);
  EXPECT(cudaMemPoolSetAttribute(pool, cudaMemPoolAttrReleaseThreshold, &threshold) == cudaSuccess);
  size_t free_bytes = 0, total_bytes = 0;
  EXPECT(cudaMemGetInfo(&free_bytes, &total_bytes) == cudaSuccess && free_bytes <= total_bytes);
}

// Run with SIMT_MEMORY=1 and SIMT_FAIL_ALLOC=3.
CHECK(little_memory) {
  void *a, *b, *c;
  EXPECT(cudaMalloc(&a, 600 << 10) == cudaSuccess);
  EXPECT(cudaMalloc(&b, 600 << 10) == cudaErrorMemoryAllocation);
  EXPECT(cudaMalloc(&c, 1) == cudaErrorMemoryAllocation && cudaMalloc(&c, 1) == cudaSuccess);
  EXPECT(cudaGetLastError() == cudaErrorMemoryAllocation);
  EXPECT(cudaFree(a) == cudaSuccess && cudaMalloc(&b, 600 << 10) == cudaSuccess);
}

// A hundred thousand threads with a few collectives each.
__global__ void block_sums(const int* in, int n, int* out) {
  MPE_SHARED(int, part, 8);
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  int v = i < n ? __ldg(in + i) : 0;
  for (int d = 16; d > 0; d /= 2) v += __shfl_xor_sync(kAll, v, d);
  if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = v;
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (int w = 1; w < 8; ++w) v += part[w];
  atomicAdd(out, v);
}

CHECK(many_threads) {
  const int n = 100000;
  std::vector<int> in(n);
  for (int i = 0; i < n; ++i) in[i] = i % 1000;
  Array<int> x(in), out(1);
  EXPECT(start(block_sums, (n + 255) / 256, 256, x.data(), n, out.data()) == cudaSuccess);
  EXPECT(out.get()[0] == 100 * 499500);
}

}  // namespace
