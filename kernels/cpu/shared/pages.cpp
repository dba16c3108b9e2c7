// What pages.h promises: small pieces come from malloc, large ones are mappings of their own.
#include "pages.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <new>

#include "mpembed/contract.h"

namespace mpembed::cpu {
namespace {

constexpr std::size_t kLine = 64;
constexpr std::size_t kHuge = std::size_t{2} << 20;

std::size_t round_up(std::size_t bytes, std::size_t unit) {
  return (bytes + unit - 1) / unit * unit;
}

// Where a piece begins and, if it is a mapping, its length. It lies right before the memory that is
// handed out, in a line or a page of its own: release gets no size.
struct Header {
  void* start;
  std::size_t mapped;

  void* memory() noexcept { return this + 1; }
  static Header* of(void* memory) noexcept { return static_cast<Header*>(memory) - 1; }
};
static_assert(sizeof(Header) <= kLine, "a small piece's header has one line");

Header* header_at(void* memory, void* start, std::size_t mapped) noexcept {
  return new (Header::of(memory)) Header{start, mapped};
}

void* allocate_small(std::size_t bytes) noexcept {
  void* start = nullptr;
  if (posix_memalign(&start, kLine, kLine + round_up(bytes, kLine)) != 0) return nullptr;
  return header_at(static_cast<char*>(start) + kLine, start, 0)->memory();
}

// Only whole aligned pieces of 2 MiB become huge pages, so the memory starts at one.
void* allocate_mapped(std::size_t bytes) noexcept {
  const std::size_t page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
  const std::size_t size = page + round_up(bytes, page);
  const int access = PROT_READ | PROT_WRITE;
  void* const raw = mmap(nullptr, size + kHuge, access, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (raw == MAP_FAILED) return nullptr;
  const std::uintptr_t address = reinterpret_cast<std::uintptr_t>(raw);
  const std::size_t head = round_up(address + page, kHuge) - page - address;
  char* const start = static_cast<char*>(raw) + head;
  if (head != 0) munmap(raw, head);
  if (head != kHuge) munmap(start + size, kHuge - head);
#ifdef MADV_HUGEPAGE
  madvise(start, size, MADV_HUGEPAGE);  // refused where huge pages are off: no harm
#endif
  return header_at(start + page, start, size)->memory();
}

}  // namespace

void* allocate_pages(std::size_t bytes) noexcept {
  if (bytes > SIZE_MAX / 4) return nullptr;  // sizes are computed with above
  return bytes < static_cast<std::size_t>(MPE_MAPPED_BYTES) ? allocate_small(bytes)
                                                            : allocate_mapped(bytes);
}

void release_pages(void* p) noexcept {
  if (p == nullptr) return;
  const Header header = *Header::of(p);
  if (header.mapped == 0) {
    std::free(header.start);
  } else {
    munmap(header.start, header.mapped);
  }
}

}  // namespace mpembed::cpu
