#include "cuda/staging.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>

#include "cuda/uncaptured.cuh"

namespace mpembed {
namespace cuda {
namespace {

constexpr size_t kSlotBytes = size_t{256} << 10;
constexpr size_t kSlots = 8;

// A device's pinned memory in slots.
class Ring {
 public:
  cudaError_t copy(void* to, const void* from, size_t bytes, cudaStream_t stream) {
    for (;;) {
      cudaEvent_t oldest = nullptr;
      {
        const std::lock_guard<std::mutex> lock(mutex_);
        cudaError_t error = memory_ == nullptr ? create() : cudaSuccess;
        if (error != cudaSuccess) return error;
        oldest = events_[next_];
        error = cudaEventQuery(oldest);  // of an event that was never recorded: success
        if (error == cudaSuccess) return copy_in(next_, to, from, bytes, stream);
        if (error != cudaErrorNotReady) return error;
        forget_error();
      }
      // Other threads go on meanwhile: what is waited for may need their work.
      const cudaError_t error = cudaEventSynchronize(oldest);
      if (error != cudaSuccess) return error;
    }
  }

 private:
  cudaError_t copy_in(size_t slot, void* to, const void* from, size_t bytes, cudaStream_t stream) {
    char* place = memory_ + slot * kSlotBytes;
    memcpy(place, from, bytes);
    const cudaError_t error = cudaMemcpyAsync(to, place, bytes, cudaMemcpyDefault, stream);
    if (error != cudaSuccess) return error;
    next_ = (slot + 1) % kSlots;
    return cudaEventRecord(events_[slot], stream);
  }

  cudaError_t create() {
    for (; made_ < kSlots; ++made_) {
      const cudaError_t error =
          cudaEventCreateWithFlags(&events_[made_], cudaEventDisableTiming | cudaEventBlockingSync);
      if (error != cudaSuccess) return error;
    }
    void* memory = nullptr;
    const cudaError_t error = cudaHostAlloc(&memory, kSlots * kSlotBytes, cudaHostAllocDefault);
    memory_ = static_cast<char*>(memory);
    return error;
  }

  std::mutex mutex_;
  char* memory_ = nullptr;
  std::array<cudaEvent_t, kSlots> events_{};
  size_t made_ = 0, next_ = 0;
};

// Those of all devices live as long as the process: at its end the runtime may be gone.
struct Rings {
  std::mutex mutex;
  std::map<int, Ring> of_device;
};

// An entry of a map stays where it is.
Ring& ring_of(int device) {
  static Rings* rings = new Rings;
  const std::lock_guard<std::mutex> lock(rings->mutex);
  return rings->of_device[device];
}

}  // namespace

bool must_be_staged(const void* from) {
  int device = 0, reads_pages = 0;
  cudaPointerAttributes attributes{};
  if (cudaGetDevice(&device) != cudaSuccess ||
      cudaDeviceGetAttribute(&reads_pages, cudaDevAttrPageableMemoryAccess, device) !=
          cudaSuccess ||
      (reads_pages != 0 && cudaPointerGetAttributes(&attributes, from) != cudaSuccess)) {
    forget_error();
    return false;
  }
  return reads_pages != 0 && attributes.type == cudaMemoryTypeUnregistered;
}

cudaError_t copy_staged(void* to, const void* from, size_t bytes, cudaStream_t stream) {
  const Uncaptured uncaptured;
  int device = 0;
  cudaError_t error = refuse_capture(stream);  // a slot holds something else at a later launch
  if (error != cudaSuccess) return error;
  error = cudaGetDevice(&device);
  if (error != cudaSuccess) return error;
  Ring& ring = ring_of(device);
  for (size_t done = 0; error == cudaSuccess && done < bytes; done += kSlotBytes) {
    error = ring.copy(static_cast<char*>(to) + done, static_cast<const char*>(from) + done,
                      std::min(kSlotBytes, bytes - done), stream);
  }
  return error;
}

}  // namespace cuda
}  // namespace mpembed
