// Checks the memory that the CPU backend's `allocate` hands out; run by test_pages.py.
#include "cpu/shared/pages.h"

#include "driver.h"
#include "mpembed/contract.h"

#include <cstdint>
#include <cstring>
#include <vector>

namespace {

constexpr std::size_t kMapped = static_cast<std::size_t>(MPE_MAPPED_BYTES);
const std::vector<std::size_t> kSizes{0,           1,       63,          64,          65, 4096,
                                      kMapped - 1, kMapped, kMapped + 1, 5 * kMapped, 100};

bool all_zero(const unsigned char* p, std::size_t bytes) {
  for (std::size_t i = 0; i < bytes; ++i) {
    if (p[i] != 0) return false;
  }
  return true;
}

// Where memory starts, and that what is mapped is zero, also after others have used the memory.
void starts() {
  for (int round = 0; round < 20; ++round) {
    for (const std::size_t bytes : kSizes) {
      auto* const p = static_cast<unsigned char*>(mpembed::cpu::allocate_pages(bytes));
      CHECK(p != nullptr);
      const std::size_t unit = bytes >= kMapped ? std::size_t{2} << 20 : 64;
      CHECK(reinterpret_cast<std::uintptr_t>(p) % unit == 0);
      CHECK(bytes < kMapped || all_zero(p, bytes));
      std::memset(p, 0xFF, bytes);
      mpembed::cpu::release_pages(p);
    }
  }
  mpembed::cpu::release_pages(nullptr);
}

// Two owners never have the same memory, and each has all that it asked for.
void apart() {
  std::vector<unsigned char*> owned;
  for (std::size_t i = 0; i < 5 * kSizes.size(); ++i) {
    const std::size_t bytes = kSizes[i % kSizes.size()];
    owned.push_back(static_cast<unsigned char*>(mpembed::cpu::allocate_pages(bytes)));
    std::memset(owned.back(), static_cast<int>(i + 1), bytes);
  }
  for (std::size_t i = 0; i < owned.size(); ++i) {
    const std::size_t bytes = kSizes[i % kSizes.size()];
    for (std::size_t b = 0; b < bytes; ++b) CHECK(owned[i][b] == i + 1);
    mpembed::cpu::release_pages(owned[i]);
  }
}

// Sizes that no machine has, near the end of the range too.
void refused() {
  for (const std::size_t bytes : {SIZE_MAX, SIZE_MAX / 2, SIZE_MAX / 4, std::size_t{1} << 52}) {
    CHECK(mpembed::cpu::allocate_pages(bytes) == nullptr);
  }
}

}  // namespace

int main(int argc, char** argv) {
  const Check checks[] = {{"starts", starts}, {"apart", apart}, {"refused", refused}};
  return run_check(checks, argc, argv);
}
