// Checks the kernels' workspace; run by test_workspace.py with the name of a check.
#include "cpu/shared/workspace.h"

#include "driver.h"

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <vector>

namespace {

constexpr std::size_t kMiB = std::size_t{1} << 20;

void* filled(std::size_t bytes, int byte) {
  void* p = mpembed::cpu::acquire_workspace(bytes);
  CHECK(p != nullptr);
  CHECK(reinterpret_cast<std::uintptr_t>(p) % (bytes > kMiB / 2 ? 64 : 16) == 0);
  std::memset(p, byte, bytes);
  return p;
}

// A released block is used again for a request that is as large or a little smaller, and not for a
// much smaller one.
void again() {
  void* first = filled(kMiB, 1);
  mpembed::cpu::release_workspace(first);
  CHECK(mpembed::cpu::kept_workspace() >= kMiB);
  CHECK(filled(kMiB - kMiB / 8, 2) == first);
  CHECK(mpembed::cpu::kept_workspace() == 0);
  mpembed::cpu::release_workspace(first);
  void* small = filled(kMiB / 4, 3);
  CHECK(small != first);
  void* large = filled(2 * kMiB, 4);
  CHECK(mpembed::cpu::kept_workspace() >= kMiB);
  mpembed::cpu::release_workspace(small);
  mpembed::cpu::release_workspace(large);
  mpembed::cpu::release_workspace(nullptr);
}

// Two owners never have the same memory, and each has all that it asked for.
void apart() {
  std::vector<std::size_t> sizes;
  for (std::size_t bytes = 1; bytes < 8 * kMiB; bytes = bytes * 3 / 2 + 1) sizes.push_back(bytes);
  for (int round = 0; round < 20; ++round) {
    std::vector<unsigned char*> owned;
    for (std::size_t i = 0; i < sizes.size(); ++i) {
      owned.push_back(static_cast<unsigned char*>(filled(sizes[i], static_cast<int>(i))));
    }
    for (std::size_t i = 0; i < sizes.size(); ++i) {
      for (std::size_t b = 0; b < sizes[i]; b += 61) CHECK(owned[i][b] == i);
      CHECK(owned[i][sizes[i] - 1] == i);
    }
    for (unsigned char* p : owned) mpembed::cpu::release_workspace(p);
  }
}

// There is a limit to what is kept, in bytes and in blocks, and the oldest block goes first.
void bounded() {
  std::vector<void*> owned;
  for (int i = 0; i < 200; ++i) owned.push_back(filled(kMiB, i));
  for (void* p : owned) {
    mpembed::cpu::release_workspace(p);
    CHECK(mpembed::cpu::kept_workspace() <= mpembed::cpu::kKeptBytes);
  }
  CHECK(mpembed::cpu::kept_workspace() > mpembed::cpu::kKeptBytes / 2);
  CHECK(filled(kMiB, 0) != nullptr);
  mpembed::cpu::release_workspace(
      filled(mpembed::cpu::kKeptBytes + kMiB, 5));  // larger than all that may be kept
  CHECK(mpembed::cpu::kept_workspace() <= mpembed::cpu::kKeptBytes);
}

void refused() {
  CHECK(mpembed::cpu::acquire_workspace(SIZE_MAX) == nullptr);
  CHECK(mpembed::cpu::acquire_workspace(SIZE_MAX / 64) == nullptr);
}

void threads() {
  std::vector<std::thread> all;
  for (int t = 0; t < 4; ++t) {
    all.emplace_back([t] {
      for (int i = 0; i < 2000; ++i) {
        const std::size_t bytes = 100000 + static_cast<std::size_t>((i * 7919) % 100000);
        auto* p = static_cast<unsigned char*>(mpembed::cpu::acquire_workspace(bytes));
        CHECK(p != nullptr);
        p[0] = p[bytes - 1] = static_cast<unsigned char>(t);
        std::this_thread::yield();
        CHECK(p[0] == t && p[bytes - 1] == t);
        mpembed::cpu::release_workspace(p);
      }
    });
  }
  for (auto& one : all) one.join();
}

}  // namespace

int main(int argc, char** argv) {
  const Check checks[] = {{"again", again},
                          {"apart", apart},
                          {"bounded", bounded},
                          {"refused", refused},
                          {"threads", threads}};
  return run_check(checks, argc, argv);
}
