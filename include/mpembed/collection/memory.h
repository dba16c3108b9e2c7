// A backend with a stream, and memory that lies where its kernels run.
#ifndef MPEMBED_COLLECTION_MEMORY_H
#define MPEMBED_COLLECTION_MEMORY_H

#include <cstring>
#include <new>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "mpembed/api.h"

namespace mpembed {

// Where a program's work goes: a backend, and the stream that all of it is queued on.
class Device {
 public:
  explicit Device(const mpe_backend* backend, void* stream = nullptr)
      : backend_(backend), stream_(stream) {
    if (backend->api_version != MPE_API_VERSION) {
      throw std::runtime_error("the library has version " + std::to_string(backend->api_version) +
                               " of the API, the headers have " + std::to_string(MPE_API_VERSION));
    }
  }

  const mpe_backend& backend() const { return *backend_; }
  void* stream() const { return stream_; }
  // Whether its memory is the host's, and calls return when their work is done.
  bool is_cpu() const { return std::strcmp(backend_->name, "cpu") == 0; }
  void wait() const { check(backend_->synchronize(stream_), "waiting"); }

  // Throws for a status that is not MPE_OK.
  void check(mpe_status status, const std::string& what) const {
    if (status == MPE_OK) return;
    if (status == MPE_ERR_MEMORY) throw std::bad_alloc();
    if (status == MPE_ERR_DEVICE) throw std::runtime_error(what + ": " + backend_->last_error());
    throw std::invalid_argument(what + ": refused with status " + std::to_string(status));
  }

 private:
  const mpe_backend* backend_;
  void* stream_;
};

// An array where the kernels run; zero at first.
template <class T>
class Array {
 public:
  Array() = default;
  Array(const Device& device, int64_t size, int32_t placement = MPE_PLACEMENT_DEVICE)
      : device_(&device), size_(size), placement_(placement) {
    void* p = nullptr;
    device.check(device.backend().allocate(bytes(), placement, &p), "allocating");
    data_ = static_cast<T*>(p);
    if (device.is_cpu() && bytes() >= MPE_MAPPED_BYTES) return;  // its pages are zero
    device.check(device.backend().fill(p, 0, bytes(), device.stream()), "filling");
  }
  Array(const Device& device, const std::vector<T>& values)
      : Array(device, static_cast<int64_t>(values.size())) {
    set(values);
  }
  ~Array() {
    if (data_ == nullptr) return;
    device_->backend().synchronize(device_->stream());
    device_->backend().release(data_, placement_);
  }
  Array(Array&& other) noexcept { *this = std::move(other); }
  Array& operator=(Array&& other) noexcept {
    std::swap(device_, other.device_);
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    std::swap(placement_, other.placement_);
    return *this;
  }

  T* data() const { return data_; }
  int64_t size() const { return size_; }
  int64_t bytes() const { return size_ * static_cast<int64_t>(sizeof(T)); }

  // Copies values in; from the host, whose memory may be used again at once.
  void set(const std::vector<T>& values) {
    if (static_cast<int64_t>(values.size()) != size_) {
      throw std::invalid_argument("an array of " + std::to_string(size_) + " values gets " +
                                  std::to_string(values.size()));
    }
    write(0, values.data(), size_);
  }
  void write(int64_t begin, const T* values, int64_t n) {
    const int64_t bytes = n * static_cast<int64_t>(sizeof(T));
    device_->check(device_->backend().copy(data_ + begin, values, bytes, device_->stream()),
                   "copying to the device");
  }
  // Copies them out, and waits.
  std::vector<T> read() const {
    std::vector<T> values(static_cast<size_t>(size_));
    device_->check(device_->backend().copy(values.data(), data_, bytes(), device_->stream()),
                   "copying from the device");
    device_->wait();
    return values;
  }

 private:
  const Device* device_ = nullptr;
  T* data_ = nullptr;
  int64_t size_ = 0;
  int32_t placement_ = MPE_PLACEMENT_DEVICE;
};

}  // namespace mpembed

#endif
