#include "cuda/pool.h"

#include <array>
#include <atomic>
#include <cstdint>
#include <mutex>

#include "cuda/uncaptured.cuh"

namespace mpembed {
namespace cuda {
namespace {

constexpr int kMaxDevices = 64;

// Workspace does not come from the device's default pool: that one is the whole process's, and so
// is its threshold. A pool of its own can keep what it has through a synchronisation.
struct Pool {
  std::atomic<bool> known{false};
  cudaMemPool_t handle = nullptr;  // stays null: not every device has pools
};

// Until then all memory is of pools, and need not be asked about.
std::atomic<bool> some_without_pools{false};

cudaError_t make(int device, Pool* pool) {
  const Uncaptured uncaptured;
  int supported = 0;
  cudaError_t error = cudaDeviceGetAttribute(&supported, cudaDevAttrMemoryPoolsSupported, device);
  if (error != cudaSuccess) return error;
  if (supported == 0) {
    some_without_pools.store(true);
    return cudaSuccess;
  }
  cudaMemPoolProps properties{};
  properties.allocType = cudaMemAllocationTypePinned;
  properties.location.type = cudaMemLocationTypeDevice;
  properties.location.id = device;
  error = cudaMemPoolCreate(&pool->handle, &properties);
  if (error != cudaSuccess) return error;
  uint64_t all = UINT64_MAX;  // without it the pool works too, but gives memory back too early
  if (cudaMemPoolSetAttribute(pool->handle, cudaMemPoolAttrReleaseThreshold, &all) != cudaSuccess) {
    forget_error();
  }
  return cudaSuccess;
}

// The pool of the thread's device, made at its first use; it lives as long as the process.
cudaError_t find(const Pool** out) {
  static std::array<Pool, kMaxDevices> pools;
  static std::mutex mutex;
  int device = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error != cudaSuccess) return error;
  if (device >= kMaxDevices) return cudaErrorInvalidDevice;
  Pool& pool = pools[static_cast<size_t>(device)];
  *out = &pool;
  if (pool.known.load(std::memory_order_acquire)) return cudaSuccess;
  const std::lock_guard<std::mutex> lock(mutex);
  if (pool.known.load(std::memory_order_relaxed)) return cudaSuccess;
  error = make(device, &pool);
  if (error == cudaSuccess) pool.known.store(true, std::memory_order_release);
  return error;
}

}  // namespace

cudaError_t pool_allocate(void** out, size_t bytes, cudaStream_t stream) {
  const Pool* pool = nullptr;
  cudaError_t error = find(&pool);
  if (error != cudaSuccess) return error;
  if (pool->handle != nullptr) return cudaMallocFromPoolAsync(out, bytes, pool->handle, stream);
  const Uncaptured uncaptured;
  error = refuse_capture(stream);  // a graph would go on with this memory after its return
  return error != cudaSuccess ? error : cudaMalloc(out, bytes);
}

cudaError_t pool_free(void* memory, cudaStream_t stream) {
  if (!some_without_pools.load()) return cudaFreeAsync(memory, stream);
  const Pool* pool = nullptr;
  cudaError_t error = find(&pool);
  if (error != cudaSuccess) return error;
  if (pool->handle != nullptr) return cudaFreeAsync(memory, stream);
  const Uncaptured uncaptured;
  error = cudaStreamSynchronize(stream);
  const cudaError_t freed = cudaFree(memory);
  return error != cudaSuccess ? error : freed;
}

}  // namespace cuda
}  // namespace mpembed
