// A fault for each sanitizer to find, by its name; .ci/sanitize.sh asks whether they work at all.
#include <thread>

namespace {
volatile int shared_number = 32;
}

extern "C" {

__attribute__((visibility("default"))) int address() {
  volatile char* const bytes = new char[64]();
  volatile char* const first = bytes + shared_number;
  delete[] bytes;
  return *first;
}

__attribute__((visibility("default"))) int undefined() { return 1 << shared_number; }

__attribute__((visibility("default"))) int thread() {
  std::thread other([] { shared_number = shared_number + 1; });
  shared_number = shared_number + 1;
  other.join();
  return shared_number;
}
}
