// Trains an embedding table on the CPU and writes its state to a file.
#include <exception>

#include "training.h"

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fprintf(stderr, "usage: %s FILE\n", argv[0]);
    return 2;
  }
  try {
    const Device device(mpe_cpu_backend(), nullptr);
    train(device, argv[1], [](const float* out, float target, float* grad, int64_t n) {
      for (int64_t i = 0; i < n; ++i) grad[i] = out[i] - target;  // the CPU's memory is ours
    });
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s: %s\n", argv[0], error.what());
    return 1;
  }
  return 0;
}
