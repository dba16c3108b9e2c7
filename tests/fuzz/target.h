// What fuzz targets share: how they fail, and how they draw.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>

extern "C" {
int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);
// A target may bring a mutator that knows its inputs; libFuzzer and standalone.cpp call it.
size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size, size_t max_size, unsigned seed);
// What changes bytes blindly; libFuzzer and standalone.cpp each have one.
size_t LLVMFuzzerMutate(uint8_t* data, size_t size, size_t max_size);
}

namespace fuzz {

[[noreturn]] inline void fail(const char* file, int line, const char* what) {
  std::fprintf(stderr, "%s:%d: violated: %s\n", file, line, what);
  std::abort();
}

// Prints, when the process ends, for how many inputs something was true.
struct Count {
  explicit Count(const char* of) : what(of) {}
  ~Count() { std::printf("%s %llu\n", what, value); }
  const char* const what;
  unsigned long long value = 0;
};

}  // namespace fuzz

// What must hold for every input.
#define FUZZ_HOLDS(condition) \
  ((condition) ? static_cast<void>(0) : fuzz::fail(__FILE__, __LINE__, #condition))
