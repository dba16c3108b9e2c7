// What workspace.h promises: released blocks wait in a short list for their next use.
#include "workspace.h"

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <new>

namespace mpembed::cpu {
namespace {

constexpr std::size_t kLine = 64;
constexpr std::size_t kSmall = std::size_t{64} << 10;  // malloc itself keeps what is no larger
constexpr int kMaxBlocks = 48;

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr bool kReuses = false;  // a sanitizer must see each use of a block as one of its own
#else
constexpr bool kReuses = true;
#endif

// The header before a block's memory. A small block is malloc's own, with this header.
struct Block {
  std::size_t capacity;  // 0: not kept
  std::size_t unused;

  void* memory() noexcept { return this + 1; }
  static Block* of(void* memory) noexcept { return static_cast<Block*>(memory) - 1; }
  // Where the allocation of a kept block begins: a line before its memory.
  void* allocation() noexcept { return static_cast<char*>(memory()) - kLine; }
};
static_assert(sizeof(Block) == 16 && sizeof(Block) <= kLine, "memory stays aligned");

// Multiples of an eighth of a power of two, so that a slightly larger batch finds a block.
std::size_t capacity_for(std::size_t bytes) noexcept {
  std::size_t step = kLine;
  while (step * 16 < bytes) step *= 2;
  return (bytes + step - 1) / step * step;
}

class FreeList {
 public:
  // When the process ends or the library is unloaded. A thread that comes later finds it busy.
  ~FreeList() {
    if (busy_.exchange(true, std::memory_order_acquire)) return;
    while (count_ > 0) std::free(remove(0)->allocation());
  }

  // The smallest block that is large enough and not twice as large. Null if there is none, or if
  // another thread is using the list: nobody waits here, because a child that was forked meanwhile
  // would wait forever.
  Block* acquire(std::size_t capacity) noexcept {
    if (busy_.exchange(true, std::memory_order_acquire)) return nullptr;
    int best = -1;
    for (int i = 0; i < count_; ++i) {
      const std::size_t candidate = blocks_[i]->capacity;
      if (candidate < capacity || candidate / 2 > capacity) continue;
      if (best < 0 || candidate < blocks_[best]->capacity) best = i;
    }
    Block* const found = best < 0 ? nullptr : remove(best);
    busy_.store(false, std::memory_order_release);
    return found;
  }

  // Keeps a block; frees the oldest ones where there is no room for it.
  void release(Block* block) noexcept {
    if (block->capacity > kKeptBytes || busy_.exchange(true, std::memory_order_acquire)) {
      std::free(block->allocation());
      return;
    }
    while (count_ == kMaxBlocks || bytes_ + block->capacity > kKeptBytes) {
      std::free(remove(0)->allocation());
    }
    blocks_[count_++] = block;
    bytes_ += block->capacity;
    busy_.store(false, std::memory_order_release);
  }

  std::size_t bytes() noexcept {
    while (busy_.exchange(true, std::memory_order_acquire)) {
    }
    const std::size_t bytes = bytes_;
    busy_.store(false, std::memory_order_release);
    return bytes;
  }

 private:
  Block* remove(int index) noexcept {
    Block* const block = blocks_[index];
    bytes_ -= block->capacity;
    --count_;
    for (int i = index; i < count_; ++i) blocks_[i] = blocks_[i + 1];
    return block;
  }

  std::atomic<bool> busy_{false};
  int count_ = 0;
  std::size_t bytes_ = 0;
  Block* blocks_[kMaxBlocks] = {};  // the oldest first
};

FreeList g_free_list;

}  // namespace

void* acquire_workspace(std::size_t bytes) noexcept {
  if (bytes > SIZE_MAX / 64) return nullptr;  // the sizes below must not overflow
  if (!kReuses || bytes <= kSmall) {
    void* const fresh = std::malloc(bytes + sizeof(Block));
    return fresh == nullptr ? nullptr : (new (fresh) Block{0, 0})->memory();
  }
  const std::size_t capacity = capacity_for(bytes + kLine);
  Block* block = g_free_list.acquire(capacity);
  if (block == nullptr) {
    char* const fresh = static_cast<char*>(std::aligned_alloc(kLine, capacity));
    if (fresh == nullptr) return nullptr;
    block = new (fresh + kLine - sizeof(Block)) Block{capacity, 0};
  }
  return block->memory();
}

void release_workspace(void* p) noexcept {
  if (p == nullptr) return;
  Block* const block = Block::of(p);
  if (block->capacity == 0) {
    std::free(block);
  } else {
    g_free_list.release(block);
  }
}

std::size_t kept_workspace() noexcept { return g_free_list.bytes(); }

}  // namespace mpembed::cpu
