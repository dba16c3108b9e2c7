// Copies and fills, each range checked against the allocations.
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "emu/device_memory.h"
#include "emu/graph.h"
#include "emu/options.h"

namespace simt {
namespace {

cudaError_t refuse(const char* what, const void* p, size_t bytes, cudaError_t error) {
  fprintf(stderr, "SIMT: %s of %zu bytes: %p is no such range\n", what, bytes, p);
  return set_error(error);
}

bool is_device(const void* p) { return in_device_memory(p) || is_device_range(p, 1); }

cudaError_t copy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind) {
  if (bytes == 0) return set_error(cudaSuccess);
  if (kind == cudaMemcpyDefault) {
    kind = static_cast<cudaMemcpyKind>((is_device(to) ? 1 : 0) | (is_device(from) ? 2 : 0));
  }
  if (kind < cudaMemcpyHostToHost || kind > cudaMemcpyDeviceToDevice) {
    return set_error(cudaErrorInvalidMemcpyDirection);
  }
  // A device range must lie within one allocation, a host range outside of device memory.
  const auto is_good = [&](const void* p, bool device) {
    return device ? is_device_range(p, bytes) : p != nullptr && !in_device_memory(p);
  };
  if (!is_good(to, (kind & 1) != 0)) {
    return refuse("a copy's destination", to, bytes, cudaErrorInvalidValue);
  }
  if (!is_good(from, (kind & 2) != 0)) {
    return refuse("a copy's source", from, bytes, cudaErrorInvalidValue);
  }
  const uintptr_t a = reinterpret_cast<uintptr_t>(to), b = reinterpret_cast<uintptr_t>(from);
  if (a < b + bytes && b < a + bytes) {
    return refuse("a copy onto itself", to, bytes, cudaErrorInvalidValue);
  }
  memcpy(to, from, bytes);
  return set_error(cudaSuccess);
}

// Where the device reads the host's page tables, the copy may be under way when its call returns.
bool might_be_read_later(const void* from) {
  cudaPointerAttributes attributes;
  return options().pageable && cudaPointerGetAttributes(&attributes, from) == cudaSuccess &&
         attributes.type == cudaMemoryTypeUnregistered;
}

cudaError_t fill(void* p, int value, size_t bytes) {
  if (bytes == 0) return set_error(cudaSuccess);
  if (!is_device_range(p, bytes)) return refuse("a fill", p, bytes, cudaErrorInvalidValue);
  memset(p, value, bytes);
  return set_error(cudaSuccess);
}

template <class F>
cudaError_t on_stream(cudaStream_t stream, int64_t Counts::* kind, F f) {
  const std::lock_guard<std::recursive_mutex> lock(runtime_mutex());
  ++counts().calls;
  ++(counts().*kind);
  const DeviceAccess access;
  const cudaError_t error = set_error(cudaSuccess);
  return error != cudaSuccess ? error : set_error(submit(stream, f));
}

// The forms without a stream wait for the device.
template <class F>
cudaError_t waiting(int64_t Counts::* kind, F f) {
  const std::lock_guard<std::recursive_mutex> lock(runtime_mutex());
  const cudaError_t error = refuse_unsafe();
  return error != cudaSuccess ? set_error(error) : on_stream(nullptr, kind, f);
}

}  // namespace
}  // namespace simt

extern "C" {

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream) {
  return simt::on_stream(stream, &simt::Counts::copies, [=] {
    if (simt::might_be_read_later(from)) {
      fprintf(stderr, "SIMT: an asynchronous copy's source, %p, is not pinned\n", from);
      return simt::set_error(cudaErrorInvalidValue);
    }
    return simt::copy(to, from, bytes, kind);
  });
}

cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind) {
  return simt::waiting(&simt::Counts::copies, [=] { return simt::copy(to, from, bytes, kind); });
}

cudaError_t cudaMemsetAsync(void* p, int value, size_t bytes, cudaStream_t stream) {
  return simt::on_stream(stream, &simt::Counts::fills, [=] { return simt::fill(p, value, bytes); });
}

cudaError_t cudaMemset(void* p, int value, size_t bytes) {
  return simt::waiting(&simt::Counts::fills, [=] { return simt::fill(p, value, bytes); });
}
}
