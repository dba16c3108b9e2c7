// What the model of docs/gpu_model.md takes from data sheets: copies, launches, reads of single
// sectors. It prints a line a figure: name, value, unit.
//
//   gpu_costs MEBIBYTES LAUNCHES    (of each buffer; of the empty kernel)
#include <cuda_runtime.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

namespace {

#define TRY(call) attempt((call), #call, __LINE__)

void attempt(cudaError_t error, const char* call, int line) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "line %d: %s: %s\n", line, call, cudaGetErrorString(error));
  std::exit(1);
}

void print(const std::string& name, double value, const char* unit) {
  std::printf("%s\t%.6g\t%s\n", name.c_str(), value, unit);
  std::fflush(stdout);
}

// Median of the device's seconds of some work, by events.
template <class Work>
double device_seconds(cudaStream_t stream, Work work, int rounds = 7) {
  cudaEvent_t start, end;
  TRY(cudaEventCreate(&start));
  TRY(cudaEventCreate(&end));
  std::vector<double> times;
  for (int i = 0; i <= rounds; ++i) {  // the first warms up
    TRY(cudaEventRecord(start, stream));
    work();
    TRY(cudaEventRecord(end, stream));
    TRY(cudaEventSynchronize(end));
    float milliseconds = 0;
    TRY(cudaEventElapsedTime(&milliseconds, start, end));
    if (i > 0) times.push_back(milliseconds * 1e-3);
  }
  std::sort(times.begin(), times.end());
  return times[times.size() / 2];
}

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

__global__ void empty_kernel() {}

// Each group of `lanes` lanes reads a row of 16 bytes a lane, at a random place among `rows`.
__global__ void read_rows(const uint4* memory, uint64_t rows, int lanes, int reads,
                          uint32_t* sink) {
  const uint64_t thread = uint64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  const uint64_t group = thread / lanes;
  uint32_t sum = 0;
  uint64_t state = group * 0x9E3779B97F4A7C15ull + 1;
#pragma unroll 4
  for (int i = 0; i < reads; ++i) {
    state = state * 6364136223846793005ull + 1442695040888963407ull;
    const uint64_t row = __umul64hi(state, rows);
    const uint4 found = memory[row * lanes + thread % lanes];
    sum += found.x ^ found.y ^ found.z ^ found.w;
  }
  if (sum == 0xFFFFFFFFu) *sink = sum;  // or the reads would be left out
}

void copies(cudaStream_t stream, size_t bytes, char* a, char* b, char* host) {
  const double size = static_cast<double>(bytes);
  const auto copy = [&](void* to, const void* from) {
    return device_seconds(
        stream, [&] { TRY(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, stream)); });
  };
  print("copy on the device, read and written", 2 * size / copy(b, a) / 1e12, "TB/s");
  print("fill on the device",
        size / device_seconds(stream, [&] { TRY(cudaMemsetAsync(a, 1, bytes, stream)); }) / 1e12,
        "TB/s");
  print("copy from pinned host memory", size / copy(a, host) / 1e9, "GB/s");
  print("copy to pinned host memory", size / copy(host, a) / 1e9, "GB/s");
}

void launches(cudaStream_t stream, int count) {
  const auto queue = [&] {
    for (int i = 0; i < count; ++i) empty_kernel<<<1, 32, 0, stream>>>();
    TRY(cudaGetLastError());
  };
  double host = 1e30;
  const double device = device_seconds(stream, [&] {
    const double start = now();
    queue();
    host = std::min(host, now() - start);
  });
  print("empty kernel, queued by the host", host / count * 1e6, "us");
  print("empty kernel, one after another", device / count * 1e6, "us");
  const cudaError_t error = cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal);
  if (error != cudaSuccess) {
    std::printf("# no graphs: %s\n", cudaGetErrorString(error));
    static_cast<void>(cudaGetLastError());
    return;
  }
  cudaGraph_t graph;
  cudaGraphExec_t made;
  queue();
  TRY(cudaStreamEndCapture(stream, &graph));
  TRY(cudaGraphInstantiate(&made, graph, 0));
  const double replay = device_seconds(stream, [&] { TRY(cudaGraphLaunch(made, stream)); });
  print("empty kernel, in a graph", replay / count * 1e6, "us");
}

void reads(cudaStream_t stream, const char* where, const char* memory, size_t bytes, int blocks,
           int each, uint32_t* sink) {
  constexpr int kThreads = 256;
  for (const int lanes : {2, 4, 8, 16, 32}) {
    const uint64_t row = uint64_t{16} * lanes;
    const double seconds = device_seconds(stream, [&] {
      read_rows<<<blocks, kThreads, 0, stream>>>(reinterpret_cast<const uint4*>(memory),
                                                 bytes / row, lanes, each, sink);
      TRY(cudaGetLastError());
    });
    const double count = static_cast<double>(blocks) * kThreads / lanes * each;
    const std::string name = "random reads of " + std::to_string(row) + " bytes, " + where;
    print(name, count / seconds / 1e9, "G/s");
    print(name, count * static_cast<double>(row) / seconds / 1e9, "GB/s");
  }
}

void small_copy(cudaStream_t stream, char* device, char* host) {
  constexpr int kTimes = 200;
  double start = 0;
  for (int i = -10; i < kTimes; ++i) {
    if (i == 0) start = now();
    TRY(cudaMemcpyAsync(host, device, 32, cudaMemcpyDefault, stream));
    TRY(cudaStreamSynchronize(stream));
  }
  print("copy of 32 bytes to pinned host memory, waited for", (now() - start) / kTimes * 1e6, "us");
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) {
    std::fprintf(stderr, "usage: %s MEBIBYTES LAUNCHES\n", argv[0]);
    return 2;
  }
  const size_t bytes = static_cast<size_t>(std::atoll(argv[1])) << 20;
  const int count = std::atoi(argv[2]);
  cudaDeviceProp properties;
  TRY(cudaGetDeviceProperties(&properties, 0));
  // The fewest threads that fill the device; each reads less across the bus.
  const int blocks = std::max(1, std::min(properties.multiProcessorCount * 8, count));
  cudaStream_t stream;
  TRY(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  char *a = nullptr, *b = nullptr, *host = nullptr;
  uint32_t* sink = nullptr;
  TRY(cudaMalloc(&a, bytes));
  TRY(cudaMalloc(&b, bytes));
  TRY(cudaMalloc(&sink, sizeof *sink));
  TRY(cudaHostAlloc(&host, bytes, cudaHostAllocMapped | cudaHostAllocPortable));
  TRY(cudaMemset(a, 1, bytes));
  copies(stream, bytes, a, b, host);
  launches(stream, count);
  small_copy(stream, a, host);
  reads(stream, "host", host, bytes, blocks, std::min(64, count), sink);
  reads(stream, "device", a, bytes, blocks, std::min(512, count), sink);
  return 0;
}
