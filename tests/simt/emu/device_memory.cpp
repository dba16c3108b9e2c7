#include "emu/device_memory.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include <map>

#include "emu/engine.h"
#include "emu/fiber.h"
#include "emu/graph.h"
#include "emu/options.h"
#include "emu/state.h"

#if defined(SIMT_ASAN)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(p, n) (static_cast<void>(p), static_cast<void>(n))
#define ASAN_UNPOISON_MEMORY_REGION(p, n) (static_cast<void>(p), static_cast<void>(n))
#endif

namespace simt {
namespace {

constexpr size_t kPage = 4096;
constexpr size_t kGuard = 512;  // before and, at least, after; also the alignment
constexpr size_t kScribbled = 4u << 20;
constexpr int kNew = 0xA5;
constexpr int kFreed = 0xDD;
constexpr unsigned char kGuardByte = 0xC7;

struct Allocation {
  char* begin;  // of the leading guard
  char* end;    // of the trailing one
  char* data;
  size_t bytes;
  bool pinned;
  int device;
  bool graph, asleep;
};

std::map<const char*, Allocation> live;  // by data
char* arena = nullptr;
size_t arena_bytes = 0;
char* cursor = nullptr;  // freed memory is reused as late as possible
size_t used_bytes = 0;
int access_depth = 0;
int64_t default_pool_uses = 0;

size_t round_up(size_t n, size_t unit) { return (n + unit - 1) / unit * unit; }

bool make_arena() {
  const int protection = options().protect ? PROT_NONE : PROT_READ | PROT_WRITE;
  for (arena_bytes = size_t{64} << 30; arena == nullptr && arena_bytes >= size_t{1} << 28;) {
    void* p =
        mmap(nullptr, arena_bytes, protection, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p != MAP_FAILED) {
      arena = static_cast<char*>(p);
    } else {
      arena_bytes /= 2;
    }
  }
  cursor = arena;
  if (access_depth != 0 && arena != nullptr) mprotect(arena, arena_bytes, PROT_READ | PROT_WRITE);
  return arena != nullptr;
}

// The first gap of the arena at or after `from`.
char* find_gap(char* from, size_t bytes) {
  char* at = from;
  for (const auto& [data, a] : live) {
    if (a.pinned || a.end <= at) continue;
    if (a.begin >= at && static_cast<size_t>(a.begin - at) >= bytes) return at;
    at = a.end;
  }
  return static_cast<size_t>(arena + arena_bytes - at) >= bytes ? at : nullptr;
}

const Allocation* find(const void* p) {
  const char* c = static_cast<const char*>(p);
  auto it = live.upper_bound(c);
  if (it == live.begin()) return nullptr;
  const Allocation& a = std::prev(it)->second;
  return c < a.data + (a.bytes == 0 ? 1 : a.bytes) ? &a : nullptr;
}

// The first damaged byte, or null.
const char* damage(const Allocation& a) {
  static char pattern[kPage + kGuard];
  if (pattern[0] == 0) memset(pattern, kGuardByte, sizeof pattern);
  const size_t before = static_cast<size_t>(a.data - a.begin);
  const size_t after = static_cast<size_t>(a.end - (a.data + a.bytes));
  if (memcmp(a.begin, pattern, before) == 0 && memcmp(a.data + a.bytes, pattern, after) == 0) {
    return nullptr;
  }
  for (const char* p = a.begin; p < a.end; ++p) {
    if (p == a.data) p += a.bytes;
    if (static_cast<unsigned char>(*p) != kGuardByte) return p;
  }
  return nullptr;
}

void check_guard(const Allocation& a) {
  const char* p = damage(a);
  if (p == nullptr) return;
  char message[128];
  snprintf(message, sizeof message, "byte %td of an allocation of %zu bytes was written",
           p - a.data, a.bytes);
  report(nullptr, nullptr, message);
  abort();
}

cudaError_t allocate(void** p, size_t bytes, bool pinned) {
  if (p == nullptr) return set_error(cudaErrorInvalidValue);
  use_context();
  *p = nullptr;
  if (bytes == 0) return set_error(cudaSuccess);
  Options& o = options();
  if (o.fail_alloc > 0 && --o.fail_alloc == 0) return set_error(cudaErrorMemoryAllocation);
  if (!pinned && (bytes > o.memory_bytes || used_bytes > o.memory_bytes - bytes)) {
    return set_error(cudaErrorMemoryAllocation);
  }
  if (!pinned && arena == nullptr && !make_arena()) return set_error(cudaErrorMemoryAllocation);
  const size_t total = round_up(kGuard + bytes + kGuard, kPage);
  char* begin;
  if (pinned) {
    begin = static_cast<char*>(aligned_alloc(kPage, total));
  } else {
    begin = find_gap(cursor, total);
    if (begin == nullptr) begin = find_gap(arena, total);
    if (begin != nullptr) cursor = begin + total;
  }
  if (begin == nullptr) return set_error(cudaErrorMemoryAllocation);
  Allocation a{begin, begin + total, begin + kGuard, bytes, pinned, current_device(), false, false};
  ASAN_UNPOISON_MEMORY_REGION(a.begin, total);
  memset(a.begin, kGuardByte, kGuard);
  memset(a.data, kNew, bytes);
  memset(a.data + bytes, kGuardByte, static_cast<size_t>(a.end - a.data) - bytes);
  ASAN_POISON_MEMORY_REGION(a.begin, kGuard);
  ASAN_POISON_MEMORY_REGION(a.data + bytes, static_cast<size_t>(a.end - a.data) - bytes);
  live.emplace(a.data, a);
  if (!pinned) used_bytes += bytes;
  *p = a.data;
  return set_error(cudaSuccess);
}

void release(const Allocation& a) {
  ASAN_UNPOISON_MEMORY_REGION(a.begin, static_cast<size_t>(a.end - a.begin));
  check_guard(a);
  const Allocation gone = a;
  live.erase(gone.data);
  if (gone.pinned) {
    free(gone.begin);
    return;
  }
  used_bytes -= gone.bytes;
  const size_t total = static_cast<size_t>(gone.end - gone.begin);
  if (total <= kScribbled) {
    memset(gone.begin, kFreed, total);
  } else {
    madvise(gone.begin, total, MADV_DONTNEED);
  }
  ASAN_POISON_MEMORY_REGION(gone.begin, total);
}

cudaError_t deallocate(void* p, bool pinned) {
  if (p == nullptr) return set_error(cudaSuccess);
  const auto it = live.find(static_cast<char*>(p));
  if (it == live.end() || it->second.pinned != pinned || it->second.graph) {
    fprintf(stderr, "SIMT: %p is freed, which is no live allocation of this kind\n", p);
    return set_error(cudaErrorInvalidValue);
  }
  release(it->second);
  return set_error(cudaSuccess);
}

}  // namespace

bool in_device_memory(const volatile void* p) {
  const uintptr_t offset = reinterpret_cast<uintptr_t>(p) - reinterpret_cast<uintptr_t>(arena);
  return arena != nullptr && offset < arena_bytes;
}

bool is_device_range(const void* p, size_t bytes) {
  const Allocation* a = find(p);
  return a != nullptr && !a->asleep &&
         bytes <= static_cast<size_t>(a->data + a->bytes - static_cast<const char*>(p));
}

cudaError_t take_graph_memory(void** p, size_t bytes) {
  const cudaError_t error = allocate(p, bytes, false);
  if (error != cudaSuccess || *p == nullptr) return error;
  live.at(static_cast<char*>(*p)).graph = true;
  set_graph_memory_asleep(*p, true);
  return error;
}

void set_graph_memory_asleep(void* p, bool asleep) {
  Allocation& a = live.at(static_cast<char*>(p));
  ASAN_UNPOISON_MEMORY_REGION(a.data, a.bytes);
  memset(a.data, asleep ? kFreed : kNew, a.bytes);
  if (asleep) ASAN_POISON_MEMORY_REGION(a.data, a.bytes);
  a.asleep = asleep;
}

void release_graph_memory(void* p) {
  const auto it = live.find(static_cast<char*>(p));  // missing after a reset of the device
  if (it != live.end()) release(it->second);
}

void check_access(const volatile void* p, size_t bytes, size_t align, Site site) {
  void* plain = const_cast<void*>(p);
  if (reinterpret_cast<uintptr_t>(p) % align != 0) {
    fault(site, "misaligned address %p (%zu bytes)", plain, align);
  }
  if (in_device_memory(p) && !is_device_range(plain, bytes)) {
    fault(site, "%zu bytes at %p are not in an allocation", bytes, plain);
  }
}

void check_guards() {
#if !defined(SIMT_ASAN)  // there the guards are poisoned
  for (const auto& [data, a] : live) check_guard(a);
#endif
}

void release_all_memory() {
  const DeviceAccess access;
  while (!live.empty()) release(live.begin()->second);
}

DeviceAccess::DeviceAccess() {
  if (options().protect && access_depth++ == 0 && arena != nullptr) {
    mprotect(arena, arena_bytes, PROT_READ | PROT_WRITE);
  }
}

DeviceAccess::~DeviceAccess() {
  if (options().protect && --access_depth == 0 && arena != nullptr) {
    mprotect(arena, arena_bytes, PROT_NONE);
  }
}

}  // namespace simt

using simt::allocate;
using simt::deallocate;
using simt::set_error;

#define SIMT_ENTER                                                         \
  const std::lock_guard<std::recursive_mutex> lock(simt::runtime_mutex()); \
  const simt::DeviceAccess access;                                         \
  ++simt::counts().calls;                                                  \
  if (const cudaError_t sticky = set_error(cudaSuccess); sticky != cudaSuccess) return sticky
#define SIMT_ENTER_UNSAFE                                                        \
  SIMT_ENTER;                                                                    \
  if (const cudaError_t refused = simt::refuse_unsafe(); refused != cudaSuccess) \
  return set_error(refused)

extern "C" {

cudaError_t cudaMalloc(void** p, size_t bytes) {
  SIMT_ENTER_UNSAFE;
  ++simt::counts().allocations;
  return allocate(p, bytes, false);
}

cudaError_t cudaFree(void* p) {
  SIMT_ENTER_UNSAFE;
  return deallocate(p, false);
}

cudaError_t cudaMallocAsync(void** p, size_t bytes, cudaStream_t stream) {
  {
    const std::lock_guard<std::recursive_mutex> lock(simt::runtime_mutex());
    ++simt::default_pool_uses;
  }
  return cudaMallocFromPoolAsync(p, bytes, nullptr, stream);
}

cudaError_t cudaMallocFromPoolAsync(void** p, size_t bytes, cudaMemPool_t, cudaStream_t stream) {
  SIMT_ENTER;
  ++simt::counts().allocations;
  if (!simt::options().pools) return set_error(cudaErrorNotSupported);
  simt::Capture* capture;
  const cudaError_t error = simt::enter_stream(stream, &capture);
  if (error != cudaSuccess) return set_error(error);
  if (capture != nullptr) return set_error(simt::allocate_in(*capture, stream, p, bytes));
  return allocate(p, bytes, false);
}

cudaError_t cudaFreeAsync(void* p, cudaStream_t stream) {
  SIMT_ENTER;
  if (!simt::options().pools) return set_error(cudaErrorNotSupported);
  simt::Capture* capture;
  const cudaError_t error = simt::enter_stream(stream, &capture);
  if (error != cudaSuccess) return set_error(error);
  if (capture != nullptr) return set_error(simt::free_in(*capture, stream, p));
  return deallocate(p, false);
}

cudaError_t cudaHostAlloc(void** p, size_t bytes, unsigned flags) {
  SIMT_ENTER_UNSAFE;
  return flags > 7 ? set_error(cudaErrorInvalidValue) : allocate(p, bytes, true);
}

cudaError_t cudaMallocHost(void** p, size_t bytes) { return cudaHostAlloc(p, bytes, 0); }

cudaError_t cudaFreeHost(void* p) {
  SIMT_ENTER_UNSAFE;
  return deallocate(p, true);
}

cudaError_t cudaHostGetDevicePointer(void** device, void* host, unsigned flags) {
  SIMT_ENTER;
  const simt::Allocation* a = simt::find(host);
  if (device == nullptr || flags != 0 || a == nullptr || !a->pinned) {
    return set_error(cudaErrorInvalidValue);
  }
  *device = host;
  return cudaSuccess;
}

cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* p) {
  SIMT_ENTER;
  if (attributes == nullptr) return set_error(cudaErrorInvalidValue);
  const simt::Allocation* a = simt::find(p);
  void* plain = const_cast<void*>(p);
  *attributes = cudaPointerAttributes{cudaMemoryTypeUnregistered, -2, nullptr, plain};
  if (a != nullptr) {
    *attributes = cudaPointerAttributes{a->pinned ? cudaMemoryTypeHost : cudaMemoryTypeDevice,
                                        a->device, plain, a->pinned ? plain : nullptr};
  }
  return cudaSuccess;
}

cudaError_t cudaMemGetInfo(size_t* free_bytes, size_t* total_bytes) {
  SIMT_ENTER;
  *total_bytes = simt::options().memory_bytes;
  *free_bytes = *total_bytes - simt::used_bytes;
  return cudaSuccess;
}

int64_t simt_live_allocations(void) {
  int64_t count = 0;
  for (const auto& [data, a] : simt::live) count += a.asleep ? 0 : 1;
  return count;
}

int64_t simt_default_pool_uses(void) { return simt::default_pool_uses; }

int64_t simt_live_bytes(void) {
  int64_t bytes = 0;
  for (const auto& [data, a] : simt::live) bytes += a.asleep ? 0 : static_cast<int64_t>(a.bytes);
  return bytes;
}
}
