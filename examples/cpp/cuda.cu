// The training of train.cpp on a CUDA device: on a stream of our own, with a kernel of our own
// between forward and backward. The file it writes has the same bytes.
#include <cuda_runtime.h>
#include <mpembed/collection.h>

#include <cstdio>
#include <fstream>

constexpr int64_t kRows = 5000, kBatch = 64, kIndices = 96, kOutputs = kBatch * 16;

__global__ void subtract(const float* out, float target, float* grad, int64_t n) {
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i < n) grad[i] = out[i] - target;
}

static void check(cudaError_t error) {
  if (error != cudaSuccess) throw std::runtime_error(cudaGetErrorString(error));
}

// Draws indices, low ones more often than high ones.
static std::vector<int64_t> draw_indices(uint64_t* state) {
  const auto number = [state] {
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return static_cast<int64_t>((*state >> 33) % kRows);
  };
  std::vector<int64_t> indices(kIndices);
  for (int64_t& index : indices) {
    const int64_t a = number(), b = number();
    index = a * b / kRows;
  }
  return indices;
}

static void run(const char* path, cudaStream_t stream) {
  mpembed::CollectionOptions options;
  options.optimizer = {MPE_optimizer_rowwise_adagrad, {{"lr", 0.1}, {"eps", 1e-8}}};
  options.cache = mpembed::CacheConfig{0.0, 4, MPE_policy_lfu};
  options.seed = 7;
  mpembed::Collection emb({{"t", kRows, 16, MPE_format_int4}}, options, mpe_cuda_backend(), stream);

  std::vector<int64_t> ends{0};  // bags of 0, 1, 2 and 3 indices in turn
  for (int64_t bag = 0; bag < kBatch; ++bag) ends.push_back(ends.back() + bag % 4);
  const mpembed::Array<int64_t> offsets(emb.device(), ends);
  mpembed::Array<int64_t> indices(emb.device(), kIndices);
  const mpembed::Array<float> out(emb.device(), kOutputs), grad(emb.device(), kOutputs);
  cudaLaunchConfig_t config{};
  config.gridDim = dim3((kOutputs + 255) / 256, 1, 1);
  config.blockDim = dim3(256, 1, 1);
  config.stream = stream;
  uint64_t state = 1;
  for (int step = 0; step < 200; ++step) {
    indices.set(draw_indices(&state));
    auto open = emb.forward(emb.batch(indices, offsets), out.data());
    // subtract<<<blocks, 256, 0, stream>>>(...) as a call that reports errors.
    check(cudaLaunchKernelEx(&config, subtract, static_cast<const float*>(out.data()), 1.0f,
                             grad.data(), out.size()));
    emb.backward(open, grad.data());
  }
  emb.check();
  indices.set(draw_indices(&state));
  emb.evaluate(emb.batch(indices, offsets), out.data());
  emb.flush();

  const std::vector<uint8_t> rows = emb.packed_rows("t");
  const std::vector<float> served = out.read();
  std::ofstream file(path, std::ios::binary);
  file.write(reinterpret_cast<const char*>(rows.data()), static_cast<std::streamsize>(rows.size()));
  file.write(reinterpret_cast<const char*>(served.data()), kOutputs * sizeof(float));
  if (!file.flush()) throw std::runtime_error(std::string("cannot write ") + path);
}

int main(int argc, char** argv) try {
  if (argc != 2) {
    std::fprintf(stderr, "usage: %s FILE\n", argv[0]);
    return 2;
  }
  int32_t devices = 0;
  if (mpe_cuda_backend()->device_count(&devices) != MPE_OK || devices == 0) {
    std::fprintf(stderr, "%s: no CUDA device: %s\n", argv[0], mpe_cuda_backend()->last_error());
    return 77;  // what CTest takes for a test that was skipped
  }
  cudaStream_t stream;
  check(cudaStreamCreate(&stream));
  run(argv[1], stream);
  check(cudaStreamDestroy(stream));
  return 0;
} catch (const std::exception& error) {
  std::fprintf(stderr, "%s: %s\n", argv[0], error.what());
  return 1;
}
