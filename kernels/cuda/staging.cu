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

// A device's pinned memory in slots that are used in turn.
class Ring {
 public:
  cudaError_t copy(void* to, const void* from, size_t bytes, cudaStream_t stream) {
    if (memory_ == nullptr) {
      const cudaError_t error = create();
      if (error != cudaSuccess) return error;
    }
    const cudaEvent_t last_read = events_[next_];
    // An event that was never recorded is no wait.
    cudaError_t error = cudaEventSynchronize(last_read);
    if (error != cudaSuccess) return error;
    char* slot = memory_ + next_ * kSlotBytes;
    memcpy(slot, from, bytes);
    error = cudaMemcpyAsync(to, slot, bytes, cudaMemcpyDefault, stream);
    if (error != cudaSuccess) return error;
    next_ = (next_ + 1) % kSlots;
    return cudaEventRecord(last_read, stream);
  }

 private:
  cudaError_t create() {
    for (; made_ < kSlots; ++made_) {
      const cudaError_t error = cudaEventCreateWithFlags(&events_[made_], cudaEventDisableTiming);
      if (error != cudaSuccess) return error;
    }
    void* memory = nullptr;
    const cudaError_t error = cudaHostAlloc(&memory, kSlots * kSlotBytes, cudaHostAllocDefault);
    memory_ = static_cast<char*>(memory);
    return error;
  }

  char* memory_ = nullptr;
  std::array<cudaEvent_t, kSlots> events_{};
  size_t made_ = 0, next_ = 0;
};

// Those of all devices live as long as the process: at its end the runtime may be gone.
struct Rings {
  std::mutex mutex;
  std::map<int, Ring> of_device;
};

Rings& rings() {
  static Rings* made = new Rings;
  return *made;
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
  const std::lock_guard<std::mutex> lock(rings().mutex);
  int device = 0;
  cudaError_t error = cudaGetDevice(&device);
  for (size_t done = 0; error == cudaSuccess && done < bytes; done += kSlotBytes) {
    error = rings().of_device[device].copy(static_cast<char*>(to) + done,
                                           static_cast<const char*>(from) + done,
                                           std::min(kSlotBytes, bytes - done), stream);
  }
  return error;
}

}  // namespace cuda
}  // namespace mpembed
