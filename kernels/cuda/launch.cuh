// What every launcher uses: named errors, stream-ordered workspace, one way to launch.
#pragma once

#if defined(__CUDACC_RTC__)  // NVRTC compiles kernels alone
#include "cuda/traits.cuh"
#include "mpembed/api_types.h"
#else
#include <cuda_runtime.h>

#include <cstdint>
#include <utility>

#include "cuda/pool.h"
#include "mpembed/api.h"
#endif

#include "mpembed/macros.h"

#ifndef MPE_SHARED
#define MPE_SHARED(type, name, count) __shared__ type name[count]
#endif

#if defined(__CUDACC__)
#define MPE_UNROLL _Pragma("unroll")
#define MPE_NO_UNROLL _Pragma("unroll 1")
#else
#define MPE_UNROLL
#define MPE_NO_UNROLL
#endif

namespace mpembed {
namespace cuda {

// docs/gpu_model.md compiles the kernels for its own workload only: aligned rows of whole chunks,
// no row twice in a batch, no long runs of empty bags, FP32 states, none of them in the cache,
// which is full, few misses a set, no update that is not finite.
#ifndef MPE_MODEL
#define MPE_MODEL 0
#endif
constexpr bool kModel = MPE_MODEL != 0;

constexpr int kWarp = 32;
constexpr int kThreads = 256;
constexpr unsigned kFullMask = 0xFFFFFFFFu;

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

#if !defined(__CUDACC_RTC__)

// Keeps "operation: reason" for last_error. Returns MPE_ERR_MEMORY if memory ran out, else
// MPE_ERR_DEVICE.
mpe_status failed(cudaError_t error, const char* operation);

// Clears the runtime's record of a failure that is not reported, so that no later call finds it.
inline void forget_error() { static_cast<void>(cudaGetLastError()); }

inline mpe_status check(cudaError_t error, const char* operation) {
  return error == cudaSuccess ? MPE_OK : failed(error, operation);
}

#define MPE_TRY(expression)                    \
  do {                                         \
    const mpe_status mpe_tried = (expression); \
    if (mpe_tried != MPE_OK) return mpe_tried; \
  } while (false)

inline cudaStream_t stream_of(void* stream) { return static_cast<cudaStream_t>(stream); }

// The bits that hold 0 .. below - 1.
inline int bits_for(uint64_t below) {
  int bits = 0;
  while (bits < 64 && below > (uint64_t{1} << bits)) ++bits;
  return bits;
}

template <class... Parameters, class... Arguments>
mpe_status launch_blocks(const char* operation, void* stream, int64_t blocks, int threads,
                         void (*kernel)(Parameters...), Arguments&&... arguments) {
  if (blocks > INT32_MAX) return failed(cudaErrorInvalidConfiguration, operation);
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(blocks), 1, 1);
  config.blockDim = dim3(static_cast<unsigned>(threads), 1, 1);
  config.stream = stream_of(stream);
  return check(cudaLaunchKernelEx(&config, kernel, std::forward<Arguments>(arguments)...),
               operation);
}

// Runs kernel(args...) on at least `threads` threads, in whole blocks of kThreads.
template <class... Parameters, class... Arguments>
mpe_status launch(const char* operation, void* stream, int64_t threads,
                  void (*kernel)(Parameters...), Arguments&&... arguments) {
  if (threads <= 0) return MPE_OK;
  return launch_blocks(operation, stream, ceil_div(threads, kThreads), kThreads, kernel,
                       std::forward<Arguments>(arguments)...);
}

// Runs kernel(args...) on exactly one thread.
template <class... Parameters, class... Arguments>
mpe_status launch_one(const char* operation, void* stream, void (*kernel)(Parameters...),
                      Arguments&&... arguments) {
  return launch_blocks(operation, stream, 1, 1, kernel, std::forward<Arguments>(arguments)...);
}

// An array of a Workspace.
template <class T>
struct Planned {
  size_t offset;
};

// Stream-ordered memory of all arrays of one call, taken at once: plan() them, acquire(), then
// get() each. It is freed at the end of the scope: the work that uses it is queued by then.
class Workspace {
 public:
  explicit Workspace(void* stream) : stream_(stream_of(stream)) {}
  ~Workspace() {
    if (memory_ != nullptr && pool_free(memory_, stream_) != cudaSuccess) forget_error();
  }
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;

  template <class T>
  Planned<T> plan(int64_t n) {
    constexpr size_t kAlignment = 256;  // as the runtime's own
    const Planned<T> planned{bytes_};
    bytes_ += (static_cast<size_t>(n) * sizeof(T) + kAlignment - 1) / kAlignment * kAlignment;
    return planned;
  }
  mpe_status acquire(const char* operation) {
    void* memory = nullptr;
    if (bytes_ == 0) return MPE_OK;
    MPE_TRY(check(pool_allocate(&memory, bytes_, stream_), operation));
    memory_ = static_cast<char*>(memory);
    return MPE_OK;
  }
  template <class T>
  T* get(Planned<T> planned) const {
    return reinterpret_cast<T*>(memory_ + planned.offset);
  }

 private:
  cudaStream_t stream_;
  char* memory_ = nullptr;
  size_t bytes_ = 0;
};

#endif

// ---- in kernels ---------------------------------------------------------------------------------

__device__ inline int64_t thread_index() {
  return static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
}

// Hides where a value comes from: what follows from it is found where it is needed, instead of
// being kept in registers.
__device__ __forceinline__ int32_t opaque(int32_t v) {
  asm volatile("" : "+r"(v));
  return v;
}

__device__ inline int lane_index() { return static_cast<int>(threadIdx.x) & (kWarp - 1); }

// The first i in [0, n] with measure(i) >= target; measure ascends.
template <class Measure>
__device__ inline int64_t first_at_least(int64_t n, int64_t target, Measure measure) {
  int64_t lo = 0, hi = n;
  while (lo < hi) {
    const int64_t mid = lo + (hi - lo) / 2;
    if (measure(mid) < target) {
      lo = mid + 1;
    } else {
      hi = mid;
    }
  }
  return lo;
}

// Whether this is the last block of the grid to come here, which then sees what the others wrote
// before. All threads of the block call it. finished: 0 at the start.
__device__ inline bool is_last_block(int32_t* finished) {
  MPE_SHARED(int32_t, last, 1);
  __syncthreads();
  if (threadIdx.x == 0) {
    __threadfence();
    last[0] = atomicAdd(finished, 1) == static_cast<int32_t>(gridDim.x) - 1;
    __threadfence();
  }
  __syncthreads();
  return last[0] != 0;
}

__device__ inline void atomic_add64(int64_t* sum, int64_t n) {
  atomicAdd(reinterpret_cast<unsigned long long*>(sum), static_cast<unsigned long long>(n));
}

__device__ inline void atomic_min64(int64_t* least, int64_t value) {
  atomicMin(reinterpret_cast<long long*>(least), static_cast<long long>(value));
}

}  // namespace cuda
}  // namespace mpembed
