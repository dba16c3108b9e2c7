// Memory of a backend that one owner holds, and arrays laid out in it.
#pragma once

#include <utility>

#include "mpembed/api.h"

#define MPE_TRY(call)                  \
  do {                                 \
    const mpe_status tried = (call);   \
    if (tried != MPE_OK) return tried; \
  } while (false)

namespace mpembed::step {

// Borrowed memory. Whoever owns it gives it back in the order of a stream; what is not given back
// belongs to a graph.
class Memory {
 public:
  Memory() = default;
  Memory(Memory&& other) noexcept { swap(other); }
  Memory& operator=(Memory&& other) noexcept {
    swap(other);
    return *this;
  }
  void swap(Memory& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
  }

  mpe_status borrow(const mpe_backend& backend, int64_t bytes, void* stream) {
    const mpe_status status = backend.borrow(bytes, stream, &data_);
    if (status != MPE_OK) data_ = nullptr;
    bytes_ = status == MPE_OK ? bytes : 0;
    return status;
  }
  void give_back(const mpe_backend& backend, void* stream) {
    if (data_ != nullptr) backend.give_back(data_, stream);
    forget();
  }
  void forget() {
    data_ = nullptr;
    bytes_ = 0;
  }

  void* data() const { return data_; }
  int64_t bytes() const { return bytes_; }

 private:
  void* data_ = nullptr;
  int64_t bytes_ = 0;
};

// Hands out arrays one behind the other, each at a cache line. Without memory it only counts.
class Arrays {
 public:
  explicit Arrays(void* memory) : memory_(static_cast<char*>(memory)) {}

  template <class T>
  T* take(int64_t n) {
    char* begin = memory_ == nullptr ? nullptr : memory_ + bytes_;
    bytes_ += (n * static_cast<int64_t>(sizeof(T)) + 63) / 64 * 64;
    return reinterpret_cast<T*>(begin);
  }
  int64_t bytes() const { return bytes_; }

 private:
  char* memory_;
  int64_t bytes_ = 0;
};

// Borrows what lay_out(arrays) takes, which is called twice: to count, then to hand it out.
template <class LayOut>
mpe_status borrow_arrays(const mpe_backend& backend, void* stream, Memory* memory, LayOut lay_out) {
  Arrays counted(nullptr);
  lay_out(counted);
  MPE_TRY(memory->borrow(backend, counted.bytes(), stream));
  Arrays handed_out(memory->data());
  lay_out(handed_out);
  return MPE_OK;
}

// The workspace of one call.
class CallMemory {
 public:
  CallMemory(const mpe_backend& backend, void* stream) : backend_(backend), stream_(stream) {}
  ~CallMemory() { memory_.give_back(backend_, stream_); }
  CallMemory(const CallMemory&) = delete;
  CallMemory& operator=(const CallMemory&) = delete;

  template <class LayOut>
  mpe_status borrow(LayOut lay_out) {
    return borrow_arrays(backend_, stream_, &memory_, lay_out);
  }

 private:
  const mpe_backend& backend_;
  void* stream_;
  Memory memory_;
};

}  // namespace mpembed::step
