// Device, memory, stream and graph functions of the API for the CPU: the host's memory, one device,
// and streams on which nothing is ever pending.
#include "cpu/common.h"
#include "cpu/kernels.h"
#include "cpu/shared/pages.h"

MPE_BEGIN

mpe_status device_count(int32_t* count) {
  *count = 1;
  return MPE_OK;
}

mpe_status describe(int32_t device, mpe_device* out) {
  if (device != 0) return MPE_ERR_DEVICE;
  *out = mpe_device{};
  out->name[0] = 'C', out->name[1] = 'P', out->name[2] = 'U';
  return MPE_OK;
}

mpe_status current_device(int32_t* device) {
  *device = 0;
  return MPE_OK;
}

mpe_status use_device(int32_t device) { return device == 0 ? MPE_OK : MPE_ERR_DEVICE; }

mpe_status device_in_use(int32_t, int32_t* in_use) {
  *in_use = 1;
  return MPE_OK;
}

mpe_status allocate(int64_t bytes, int32_t, void** out) {
  *out = cpu::allocate_pages(static_cast<size_t>(bytes > 0 ? bytes : 1));
  return *out == nullptr ? MPE_ERR_MEMORY : MPE_OK;
}

void release(void* p, int32_t) { cpu::release_pages(p); }

mpe_status borrow(int64_t bytes, void*, void** out) {
  *out = cpu::acquire_workspace(static_cast<size_t>(bytes > 0 ? bytes : 1));
  return *out == nullptr ? MPE_ERR_MEMORY : MPE_OK;
}

void give_back(void* p, void*) { cpu::release_workspace(p); }

mpe_status copy(void* to, const void* from, int64_t bytes, void*) {
  if (bytes > 0) memcpy(to, from, static_cast<size_t>(bytes));
  return MPE_OK;
}

mpe_status fill(void* p, int32_t byte, int64_t bytes, void*) {
  if (bytes > 0) memset(p, byte, static_cast<size_t>(bytes));
  return MPE_OK;
}

mpe_status synchronize(void*) { return MPE_OK; }

mpe_status create_event(void** out) {
  *out = nullptr;
  return MPE_OK;
}

void destroy_event(void*) {}

mpe_status record(void*, void*) { return MPE_OK; }

mpe_status wait(void*, void*) { return MPE_OK; }

mpe_status wait_on_host(void*) { return MPE_OK; }

mpe_status capturing(void*, uint64_t* capture) {
  *capture = 0;
  return MPE_OK;
}

mpe_status wait_in_graph(void*, void*) { return MPE_OK; }

mpe_status record_in_graph(void*, void*) { return MPE_OK; }

const char* last_error(void) { return "the CPU has one device, number 0"; }

MPE_END
