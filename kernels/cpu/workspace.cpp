// What workspace.h promises: blocks that were given back wait in a short list for their next use.
#include "workspace.h"

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <new>

namespace mpe {
namespace {

constexpr std::size_t kLine = 64;
constexpr std::size_t kSmall = std::size_t{64} << 10;  // what malloc keeps by itself
constexpr int kMaxBlocks = 48;

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr bool kKeeps = false;  // every block has its own life, which the sanitizer follows
#else
constexpr bool kKeeps = true;
#endif

// What lies before the memory that is given out. A small one is malloc's own, with this header.
struct Block {
  std::size_t capacity;  // 0: not kept
  std::size_t unused;

  void* memory() noexcept { return this + 1; }
  static Block* of(void* memory) noexcept { return static_cast<Block*>(memory) - 1; }
  // Where a kept one begins: a line before its memory.
  void* start() noexcept { return static_cast<char*>(memory()) - kLine; }
};
static_assert(sizeof(Block) == 16 && sizeof(Block) <= kLine, "memory stays aligned");

// Multiples of an eighth of a power of two, so that a batch that is a little larger finds a block.
std::size_t capacity_for(std::size_t bytes) noexcept {
  std::size_t step = kLine;
  while (step * 16 < bytes) step *= 2;
  return (bytes + step - 1) / step * step;
}

class List {
 public:
  // When the process ends or the library is unloaded. Whoever comes later finds it busy.
  ~List() {
    if (busy_.exchange(true, std::memory_order_acquire)) return;
    while (count_ > 0) std::free(remove(0)->start());
  }

  // The smallest block that is large enough and not twice as large; null if there is none, or if
  // another thread is here: nobody waits, in a child that was forked in between neither.
  Block* take(std::size_t capacity) noexcept {
    if (busy_.exchange(true, std::memory_order_acquire)) return nullptr;
    int best = -1;
    for (int i = 0; i < count_; ++i) {
      const std::size_t here = blocks_[i]->capacity;
      if (here < capacity || here / 2 > capacity) continue;
      if (best < 0 || here < blocks_[best]->capacity) best = i;
    }
    Block* const found = best < 0 ? nullptr : remove(best);
    busy_.store(false, std::memory_order_release);
    return found;
  }

  // Keeps a block in the place of the oldest ones, if need be.
  void give(Block* block) noexcept {
    if (block->capacity > kKeptBytes || busy_.exchange(true, std::memory_order_acquire)) {
      std::free(block->start());
      return;
    }
    while (count_ == kMaxBlocks || bytes_ + block->capacity > kKeptBytes)
      std::free(remove(0)->start());
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
  Block* remove(int at) noexcept {
    Block* const block = blocks_[at];
    bytes_ -= block->capacity;
    --count_;
    for (int i = at; i < count_; ++i) blocks_[i] = blocks_[i + 1];
    return block;
  }

  std::atomic<bool> busy_{false};
  int count_ = 0;
  std::size_t bytes_ = 0;
  Block* blocks_[kMaxBlocks] = {};  // the oldest first
};

List g_list;

}  // namespace

void* take_workspace(std::size_t bytes) noexcept {
  if (bytes > SIZE_MAX / 64) return nullptr;  // sizes are computed with below
  if (!kKeeps || bytes <= kSmall) {
    void* const fresh = std::malloc(bytes + sizeof(Block));
    return fresh == nullptr ? nullptr : (new (fresh) Block{0, 0})->memory();
  }
  const std::size_t capacity = capacity_for(bytes + kLine);
  Block* block = g_list.take(capacity);
  if (block == nullptr) {
    char* const fresh = static_cast<char*>(std::aligned_alloc(kLine, capacity));
    if (fresh == nullptr) return nullptr;
    block = new (fresh + kLine - sizeof(Block)) Block{capacity, 0};
  }
  return block->memory();
}

void give_workspace(void* p) noexcept {
  if (p == nullptr) return;
  Block* const block = Block::of(p);
  if (block->capacity == 0) {
    std::free(block);
  } else {
    g_list.give(block);
  }
}

std::size_t kept_workspace() noexcept { return g_list.bytes(); }

}  // namespace mpe
