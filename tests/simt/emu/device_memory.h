// Device memory: an address range of its own, allocations with guards, and checked copies.
#ifndef SIMT_EMU_DEVICE_MEMORY_H
#define SIMT_EMU_DEVICE_MEMORY_H

#include <stddef.h>
#include <stdint.h>

#include <mutex>

#include "emu/api.h"

namespace simt {

// Every call of the runtime holds it, launches included.
std::recursive_mutex& runtime_mutex();

cudaError_t set_error(cudaError_t error);  // for cudaGetLastError; returns it, or the sticky one
void set_sticky_error(cudaError_t error);
cudaError_t check_stream(cudaStream_t stream);

// What the process has asked of the runtime; CUB's own calls are not counted.
struct Counts {
  int64_t calls, copies, fills, allocations;
};
Counts& counts();  // the lock is held

// Takes the lock; the sticky error takes precedence over the call's own.
template <class F>
cudaError_t call(F f) {
  const std::lock_guard<std::recursive_mutex> lock(runtime_mutex());
  ++counts().calls;
  if (const cudaError_t sticky = set_error(cudaSuccess); sticky != cudaSuccess) return sticky;
  return set_error(f());
}

int current_device();
void use_context();  // of the current device, which has one from then on
void release_all_memory();

// A graph's memory has its address from the capture on. Each launch may use it between the nodes
// that allocate and free it.
cudaError_t take_graph_memory(void** p, size_t bytes);
void set_graph_memory_asleep(void* p, bool asleep);
void release_graph_memory(void* p);

// Within the range of device memory, allocated or not.
bool in_device_memory(const volatile void* p);
// [p, p + bytes) lies in one allocation that the device may use.
bool is_device_range(const void* p, size_t bytes);
// Aborts if something has written into a guard.
void check_guards();

// While one lives, SIMT_PROTECT lets the process touch device memory.
class DeviceAccess {
 public:
  DeviceAccess();
  ~DeviceAccess();
  DeviceAccess(const DeviceAccess&) = delete;
  DeviceAccess& operator=(const DeviceAccess&) = delete;
};

}  // namespace simt

#endif
