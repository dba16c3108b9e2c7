// The same on a CUDA device: on a stream of our own, with a kernel of our own between forward and
// backward. The file it writes has the same bytes.
#include <cuda_runtime.h>

#include <exception>

#include "training.h"

__global__ void subtract(const float* out, float target, float* grad, int64_t n) {
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i < n) grad[i] = out[i] - target;
}

static void check(cudaError_t error) {
  if (error != cudaSuccess) throw std::runtime_error(cudaGetErrorString(error));
}

static void run(const char* path) {
  cudaStream_t stream;
  check(cudaStreamCreate(&stream));
  {
    const Device device(mpe_cuda_backend(), stream);
    // What follows is subtract<<<blocks, 256, 0, stream>>>(...) as a call that reports errors.
    train(device, path, [stream](const float* out, float target, float* grad, int64_t n) {
      cudaLaunchConfig_t config{};
      config.gridDim = dim3(static_cast<unsigned>((n + 255) / 256), 1, 1);
      config.blockDim = dim3(256, 1, 1);
      config.stream = stream;
      check(cudaLaunchKernelEx(&config, subtract, out, target, grad, n));
    });
  }
  check(cudaStreamDestroy(stream));
}

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fprintf(stderr, "usage: %s FILE\n", argv[0]);
    return 2;
  }
  int32_t devices = 0;
  if (mpe_cuda_backend()->device_count(&devices) != MPE_OK || devices == 0) {
    std::fprintf(stderr, "%s: no CUDA device: %s\n", argv[0], mpe_cuda_backend()->last_error());
    return 77;  // what CTest takes for a test that was skipped
  }
  try {
    run(argv[1]);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s: %s\n", argv[0], error.what());
    return 1;
  }
  return 0;
}
