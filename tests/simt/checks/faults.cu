// Seeded mistakes, each of which the SIMT emulation must notice. Checks named fault_* end the
// process; test_simt.py has the expected messages.
#include <assert.h>

#include "checks.h"

namespace {

enum Mistake {
  kDifferentCollectives,
  kDifferentSites,
  kOmitsCaller,
  kMasksDisagree,
  kExitedBefore,
  kExitsLater,
  kNoSuchLane,
  kBadWidth,
  kBarrierAndCollective,
  kDifferentBarriers,
  kBarrierInCollective,
  kMisaligned,
  kSpin,
};

__global__ void mistake(int which, int* out) {
  const unsigned t = threadIdx.x, lane = t & 31u;
  int r = 0;
  switch (which) {
    case kDifferentCollectives:
      r = lane == 3 ? __any_sync(kAll, 1) : __shfl_sync(kAll, 1, 0);
      break;
    case kDifferentSites:
      if (lane < 16) {
        __syncwarp();
      } else {
        __syncwarp();
      }
      break;
    case kOmitsCaller:
      r = __shfl_sync(0xFFFFFFFEu, 1, 1);
      break;
    case kMasksDisagree:
      r = __shfl_sync(lane == 9 ? 0x0000FFFFu : kAll, 1, 0);
      break;
    case kExitedBefore:
    case kExitsLater:
      if (lane == 7) {
        if (which == kExitsLater) {
          while (__ldcg(out) != 31) __nanosleep(1);
        }
        return;
      }
      if (which == kExitedBefore) __syncwarp(~(1u << 7));
      atomicAdd(out, 1);
      r = static_cast<int>(__ballot_sync(kAll, 1));
      break;
    case kNoSuchLane:
      if (t >= 32) r = static_cast<int>(__ballot_sync(kAll, 1));
      break;
    case kBadWidth:
      r = __shfl_down_sync(kAll, 1, 1, 3);
      break;
    case kBarrierAndCollective:
      if (lane == 0) {
        __syncwarp();
      } else {
        __syncthreads();
      }
      break;
    case kDifferentBarriers:
      if (t < 32) {
        __syncthreads();
      } else {
        __syncthreads();
      }
      break;
    case kBarrierInCollective:
      if (t >= 32) {
        __syncwarp(lane == 5 ? 1u << 5 : ~(1u << 5));
        if (lane == 5) r = __any_sync(kAll, 1);
      }
      __syncthreads();
      break;
    case kMisaligned:
      r = __ldg(reinterpret_cast<int*>(reinterpret_cast<char*>(out) + 2));
      break;
    case kSpin:
      while (__ldcg(out) == 0) __nanosleep(1);
      break;
  }
  if (r == 123456) *out = r;
}

void make(Mistake which, unsigned threads = 64) {
  Array<int> out(64);
  const cudaError_t launched = start(mistake, 1, threads, static_cast<int>(which), out.data());
  // The process continues only with SIMT_FAULT=error.
  fprintf(stderr, "launch: %s, then %s\n", cudaGetErrorName(launched),
          cudaGetErrorName(cudaDeviceSynchronize()));
  exit(3);
}

CHECK(fault_different_collectives) { make(kDifferentCollectives); }
CHECK(fault_different_sites) { make(kDifferentSites); }
CHECK(fault_omits_caller) { make(kOmitsCaller); }
CHECK(fault_masks_disagree) { make(kMasksDisagree); }
CHECK(fault_exited_before) { make(kExitedBefore, 32); }
CHECK(fault_exits_later) { make(kExitsLater, 32); }
CHECK(fault_no_such_lane) { make(kNoSuchLane, 48); }
CHECK(fault_bad_width) { make(kBadWidth); }
CHECK(fault_barrier_and_collective) { make(kBarrierAndCollective); }
CHECK(fault_different_barriers) { make(kDifferentBarriers); }
CHECK(fault_barrier_in_collective) { make(kBarrierInCollective); }
CHECK(fault_misaligned) { make(kMisaligned); }
CHECK(fault_spin) { make(kSpin); }

__global__ void write_at(int* p, int i) { p[i] = 1; }
__global__ void read_at(const int* p, int i, int* out) { *out = p[i]; }
__global__ void load_at(const int* p, int i, int* out) { *out = __ldg(p + i); }
__global__ void add_at(int* p, int i) { atomicAdd(p + i, 1); }
__global__ void write_shared(int i) {
  MPE_SHARED(int, tile, 32);
  MPE_SHARED(int, other, 32);
  tile[threadIdx.x] = 0;
  other[threadIdx.x] = 0;
  tile[i] = 1;
}

CHECK(fault_write_past_end) {
  Array<int> x(100);
  start(write_at, 1, 1, x.data(), 100);
}
CHECK(fault_write_before) {
  Array<int> x(100);
  start(write_at, 1, 1, x.data(), -1);
}
CHECK(fault_read_past_end) {
  Array<int> x(100), out(1);
  start(read_at, 1, 1, x.data(), 100, out.data());
}
CHECK(fault_load_past_end) {
  Array<int> x(100), out(1);
  start(load_at, 1, 1, x.data(), 100, out.data());
}
CHECK(fault_atomic_past_end) {
  Array<int> x(100);
  start(add_at, 1, 1, x.data(), 100);
}
CHECK(fault_shared_past_end) { start(write_shared, 1, 32, 32); }

template <class F>
void after_free(F f) {
  int *p, *out;
  EXPECT(cudaMalloc(&p, 400) == cudaSuccess && cudaMalloc(&out, 4) == cudaSuccess);
  EXPECT(cudaFree(p) == cudaSuccess);
  f(p, out);
}
CHECK(fault_read_after_free) {
  after_free([](int* p, int* out) { start(read_at, 1, 1, p, 3, out); });
}
CHECK(fault_load_after_free) {
  after_free([](int* p, int* out) { start(load_at, 1, 1, p, 3, out); });
}

__device__ int deep(volatile int* p, int n) {
  volatile int frame[256];
  frame[n & 255] = *p;
  return n == 0 ? frame[0] : deep(p, n - 1) + frame[n & 255];
}
__global__ void recursion(int* out) { *out = deep(out, 1 << 20); }
CHECK(fault_stack) {
  Array<int> out(1);
  start(recursion, 1, 1, out.data());
}

// Both need an instrumented build. Without one the first thread waits forever, and every sum is
// right by chance.
__global__ void volatile_relay(volatile int* flag) {
  const int i = static_cast<int>(threadIdx.x);
  while (*flag != i) {
  }
  *flag = i + 1;
}
__global__ void count_without_atomics(int* count, int* seen) {
  const int before = *count;
  seen[threadIdx.x] = before;
  *count = before + 1;
}
CHECK(fault_plain_accesses) {
  Array<int> flag(1), seen(64);
  EXPECT(start(volatile_relay, 1, 64, flag.data()) == cudaSuccess && flag.get()[0] == 64);
  for (int round = 0; round < 10; ++round) {
    Array<int> count(1);
    EXPECT(start(count_without_atomics, 1, 64, count.data(), seen.data()) == cudaSuccess);
    if (count.get()[0] < 64) return;
  }
  EXPECT(!"no update was lost");
}

CHECK(fault_host_access) {
  Array<int> x(1);
  printf("%d\n", *static_cast<volatile int*>(x.data()));
}

__global__ void too_much_shared() {
  MPE_SHARED(int, tile, 6000);
  MPE_SHARED(int, other, 6400);
  tile[0] = other[0];
}
#if defined(MPE_SIMT)  // nvcc refuses it
CHECK(fault_too_much_shared) { start(too_much_shared, 1, 1); }
#endif

CHECK(fault_destroyed_stream) {
  cudaStream_t stream;
  cudaStreamCaptureStatus status;
  EXPECT(cudaStreamCreate(&stream) == cudaSuccess && cudaStreamDestroy(stream) == cudaSuccess);
  cudaStreamIsCapturing(stream, &status);
}

__global__ void ends(int how, int* out) {
  if (threadIdx.x == 40) {
    assert(how != 1);
    if (how == 2) __trap();
  }
  __syncthreads();
  *out = 1;
}

CHECK(sticky_errors) {
  const cudaError_t want[] = {cudaSuccess, cudaErrorAssert, cudaErrorLaunchFailure};
  for (const int how : {1, 2, 0}) {
    int* out;
    EXPECT(cudaMalloc(&out, 4) == cudaSuccess);
    EXPECT(start(ends, 2, 64, how, out) == cudaSuccess);
    EXPECT(cudaDeviceSynchronize() == want[how] && cudaGetLastError() == want[how]);
    EXPECT(cudaGetLastError() == want[how] && start(ends, 1, 64, 0, out) == want[how]);
    EXPECT(cudaFree(out) == want[how]);
    EXPECT(cudaDeviceReset() == cudaSuccess && cudaDeviceSynchronize() == cudaSuccess);
  }
}

}  // namespace
