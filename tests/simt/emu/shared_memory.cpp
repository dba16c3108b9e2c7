// Shared memory: each declaration has an array of its own in each resident block.
#include <stdio.h>
#include <string.h>

#include "emu/state.h"

#if defined(SIMT_ASAN)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(p, n) (static_cast<void>(p), static_cast<void>(n))
#define ASAN_UNPOISON_MEMORY_REGION(p, n) (static_cast<void>(p), static_cast<void>(n))
#endif

namespace simt {
namespace {

constexpr size_t kStatic = 48 * 1024;  // hardware's limit without dynamic shared memory
constexpr size_t kGuard = 64;
constexpr size_t kArena = 4 * kStatic;
constexpr unsigned char kGuardByte = 0xC7;
constexpr int kFill = 0xA5;

size_t round_up(size_t n, size_t unit) { return (n + unit - 1) / unit * unit; }

}  // namespace

SharedMemory::SharedMemory() : arena_(new char[kArena + 128]) {}

void SharedMemory::start_launch() {
  arrays_.clear();
  used_ = 0;
  ASAN_UNPOISON_MEMORY_REGION(arena_.get(), kArena + 128);
  memset(arena_.get(), kGuardByte, kArena + 128);
  ASAN_POISON_MEMORY_REGION(arena_.get(), kArena + 128);
}

void SharedMemory::start_block() {
  for (Array& a : arrays_) a.fresh = true;
}

void* SharedMemory::find(const void* key, size_t bytes, size_t align, const char* name, Site site) {
  for (Array& a : arrays_) {
    if (a.key != key) continue;
    if (a.fresh) memset(a.data, kFill, a.bytes);
    a.fresh = false;
    return a.data;
  }
  size_t total = bytes;
  for (const Array& a : arrays_) total += a.bytes;
  if (align > 128 || total > kStatic || used_ + bytes + 4 * kGuard > kArena) {
    fault(site, "shared array %s: %zu bytes in all, aligned to %zu; 48 KiB and 128 are the limits",
          name, total, align);
  }
  char* base = arena_.get() + (128 - reinterpret_cast<uintptr_t>(arena_.get()) % 128) % 128;
  char* data = base + round_up(used_ + kGuard, align > 16 ? align : 16);
  used_ = static_cast<size_t>(data - base) + bytes + kGuard;
  ASAN_UNPOISON_MEMORY_REGION(data, bytes);
  memset(data, kFill, bytes);
  arrays_.push_back(Array{key, name, data, bytes, site, false});
  return data;
}

void SharedMemory::check(const Block& block) const {
#if defined(SIMT_ASAN)
  static_cast<void>(block);  // the guards are poisoned
#else
  for (const Array& a : arrays_) {
    for (size_t i = 1; i <= kGuard; ++i) {
      const bool before = static_cast<unsigned char>(*(a.data - i)) != kGuardByte;
      const bool after = static_cast<unsigned char>(a.data[a.bytes + i - 1]) != kGuardByte;
      if (!before && !after) continue;
      char message[256];
      snprintf(message, sizeof message, "block (%u,%u,%u): a write %s shared array %s",
               block.index.x, block.index.y, block.index.z, before ? "before" : "past the end of",
               a.name);
      report(nullptr, &a.site, message);
      end_launch(cudaErrorLaunchFailure);
      return;
    }
  }
#endif
}

}  // namespace simt
