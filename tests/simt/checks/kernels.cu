// Self-tests of the SIMT emulation: each device feature compared with a plain computation.
#include <algorithm>

#include "checks.h"

namespace {

uint32_t mix(uint32_t x) { return (x ^ (x >> 7)) * 2654435761u; }

template <class T>
__host__ __device__ T value_of(unsigned lane) {
  return static_cast<T>(1.25 + 3.0 * lane) - static_cast<T>(20);
}

template <class T>
__global__ void shuffles(T* out, int argument, int width) {
  const unsigned lane = threadIdx.x & 31u;
  const T v = value_of<T>(threadIdx.x);
  T* row = out + threadIdx.x * 4;
  row[0] = __shfl_sync(kAll, v, argument + static_cast<int>(lane), width);
  row[1] = __shfl_up_sync(kAll, v, static_cast<unsigned>(argument), width);
  row[2] = __shfl_down_sync(kAll, v, static_cast<unsigned>(argument), width);
  row[3] = __shfl_xor_sync(kAll, v, argument, width);
}

template <class T>
void check_shuffles() {
  Array<T> out(64 * 4);
  for (int width = 1; width <= 32; width *= 2) {
    for (int argument = 0; argument < width; ++argument) {
      EXPECT(start(shuffles<T>, 1, 64, out.data(), argument, width) == cudaSuccess);
      const std::vector<T> got = out.get();
      for (int thread = 0; thread < 64; ++thread) {
        const int first = thread / width * width, place = thread % width;
        const int any = first + (argument + thread % 32) % width;
        const int up = place >= argument ? thread - argument : thread;
        const int down = place + argument < width ? thread + argument : thread;
        const int flipped = first + (place ^ argument);
        const int sources[] = {any, up, down, flipped};
        for (int k = 0; k < 4; ++k) {
          EXPECT(got[thread * 4 + k] == value_of<T>(static_cast<unsigned>(sources[k])));
        }
      }
    }
  }
}

CHECK(shuffle) {
  check_shuffles<int>();
  check_shuffles<unsigned>();
  check_shuffles<long long>();
  check_shuffles<unsigned long long>();
  check_shuffles<float>();
  check_shuffles<double>();
}

// Two groups of lanes, each with its own mask, in different numbers of rounds.
__global__ void votes(const uint32_t* in, uint32_t* out) {
  const unsigned lane = threadIdx.x;
  const unsigned mask = (lane & 3u) == 0 ? 0x11111111u : 0xEEEEEEEEu;
  const uint32_t v = in[lane];
  for (int round = 0; round < ((lane & 3u) == 0 ? 5 : 2); ++round) {
    uint32_t* row = out + lane * 16;
    row[0] = __ballot_sync(mask, v & 1u);
    row[1] = static_cast<uint32_t>(__any_sync(mask, v == 7));
    row[2] = static_cast<uint32_t>(__all_sync(mask, v < 64));
    row[3] = __match_any_sync(mask, v & 3u);
    int same = 0;
    row[4] = __match_all_sync(mask, v >> 6, &same);
    row[5] = static_cast<uint32_t>(same);
    row[6] = __reduce_add_sync(mask, v * 0x10000001u);
    row[7] = __reduce_min_sync(mask, v);
    row[8] = __reduce_max_sync(mask, v);
    row[9] = static_cast<uint32_t>(__reduce_min_sync(mask, static_cast<int>(v) - 32));
    row[10] = static_cast<uint32_t>(__reduce_max_sync(mask, static_cast<int>(v) - 32));
    row[11] = __reduce_and_sync(mask, v | 0x40u);
    row[12] = __reduce_or_sync(mask, v);
    row[13] = __reduce_xor_sync(mask, v);
    row[14] = __match_any_sync(mask, static_cast<float>(v >> 3));
    row[15] = static_cast<uint32_t>(__reduce_add_sync(mask, -static_cast<int>(v)));
  }
}

CHECK(vote) {
  std::vector<uint32_t> in(32);
  for (uint32_t i = 0; i < 32; ++i) in[i] = mix(i + 1) % 64;
  Array<uint32_t> x(in), out(32 * 16);
  EXPECT(start(votes, 1, 32, x.data(), out.data()) == cudaSuccess);
  const std::vector<uint32_t> got = out.get();
  for (uint32_t lane = 0; lane < 32; ++lane) {
    uint32_t want[16] = {0, 0, 1, 0, 0, 1, 0, kAll, 0, 31, static_cast<uint32_t>(-32), kAll};
    for (uint32_t i = 0; i < 32; ++i) {
      if ((i % 4 == 0) != (lane % 4 == 0)) continue;
      const uint32_t v = in[i];
      want[0] |= (v & 1u) << i;
      want[1] |= v == 7;
      want[2] &= v < 64;
      want[3] |= uint32_t{v % 4 == in[lane] % 4} << i;
      want[4] |= 1u << i;
      want[6] += v * 0x10000001u;
      want[7] = std::min(want[7], v);
      want[8] = std::max(want[8], v);
      const int less = static_cast<int>(v) - 32;
      want[9] = static_cast<uint32_t>(std::min(static_cast<int>(want[9]), less));
      want[10] = static_cast<uint32_t>(std::max(static_cast<int>(want[10]), less));
      want[11] &= v | 0x40u;
      want[12] |= v;
      want[13] ^= v;
      want[14] |= uint32_t{v / 8 == in[lane] / 8} << i;
      want[15] -= v;
    }
    for (int k = 0; k < 16; ++k) EXPECT(got[lane * 16 + k] == want[k]);
  }
}

// Neighbours exchange values through memory: right with __syncwarp, hardly ever without.
template <bool kSync>
__global__ void exchange(int* memory, int* out) {
  MPE_SHARED(int, tile, 128);
  const unsigned t = threadIdx.x;
  tile[t] = static_cast<int>(t) + 1;
  memory[t] = static_cast<int>(t) + 1;
  if (kSync) __syncwarp();
  out[t] = tile[t ^ 1u] + memory[t ^ 31u];
}

template <bool kSync>
int wrong_exchanges() {
  int wrong = 0;
  for (int round = 0; round < 20; ++round) {
    Array<int> memory(128), out(128);
    EXPECT(start(exchange<kSync>, 1, 128, memory.data(), out.data()) == cudaSuccess);
    const std::vector<int> got = out.get();
    bool right = true;
    for (int t = 0; t < 128; ++t) right = right && got[t] == (t ^ 1) + (t ^ 31) + 2;
    wrong += right ? 0 : 1;
  }
  return wrong;
}

CHECK(syncwarp) { EXPECT(wrong_exchanges<true>() == 0); }
CHECK(missing_syncwarp) { EXPECT(wrong_exchanges<false>() >= 19); }

template <bool kSync>
__global__ void reverse(const int* in, int* out) {
  MPE_SHARED(int, tile, 256);
  const unsigned t = threadIdx.x + blockIdx.x * 256;
  tile[threadIdx.x] = in[t];
  if (kSync) __syncthreads();
  out[t] = tile[255 - threadIdx.x];
}

template <bool kSync>
int wrong_reversals() {
  std::vector<int> in(256 * 6);
  for (size_t i = 0; i < in.size(); ++i) in[i] = static_cast<int>(i);
  int wrong = 0;
  for (int round = 0; round < 10; ++round) {
    Array<int> x(in), out(in.size());
    EXPECT(start(reverse<kSync>, 6, 256, x.data(), out.data()) == cudaSuccess);
    const std::vector<int> got = out.get();
    bool right = true;
    for (int i = 0; i < 256 * 6; ++i) right = right && got[i] == i / 256 * 256 + 255 - i % 256;
    wrong += right ? 0 : 1;
  }
  return wrong;
}

CHECK(syncthreads) { EXPECT(wrong_reversals<true>() == 0); }
CHECK(missing_syncthreads) { EXPECT(wrong_reversals<false>() >= 9); }

__global__ void barrier_votes(int* out) {
  const int t = static_cast<int>(threadIdx.x);
  if (t >= 96) return;  // exited threads do not count
  const int three = __syncthreads_count(t % 32 == 0);
  const int all = __syncthreads_and(t < 96) * 10 + __syncthreads_and(t != 95);
  const int any = __syncthreads_or(t == 5) * 10 + __syncthreads_or(t == 97);
  out[t] = three * 10000 + all * 100 + any;
}

CHECK(barrier_vote) {
  Array<int> out(128);
  EXPECT(start(barrier_votes, 1, 128, out.data()) == cudaSuccess);
  const std::vector<int> got = out.get();
  for (int t = 0; t < 128; ++t) EXPECT(got[t] == (t < 96 ? 31010 : 0));
}

template <class T>
__device__ T* scratch() {
  MPE_SHARED(T, place, 8);
  return place;
}

__global__ void shared_sites(int* out) {
  int good = 1;
  int* a = scratch<int>();
  float* b = scratch<float>();
  good &= static_cast<void*>(a) != static_cast<void*>(b);
  if (threadIdx.x == 0) {
    for (int i = 0; i < 8; ++i) good &= a[i] == static_cast<int>(0xA5A5A5A5u);
    a[0] = static_cast<int>(blockIdx.x);
  }
  __syncthreads();
  for (int i = 0; i < 2; ++i) {
    MPE_SHARED(uint4, wide, 3);
    good &= sizeof(wide) == 48 && reinterpret_cast<uintptr_t>(wide) % 16 == 0;
    if (threadIdx.x == 0) wide[0].x += 1u;
    good &= threadIdx.x != 0 || wide[0].x == 0xA5A5A5A5u + static_cast<unsigned>(i) + 1u;
  }
  good &= scratch<int>()[0] == static_cast<int>(blockIdx.x);
  __syncthreads();
  out[blockIdx.x * blockDim.x + threadIdx.x] = good;
}

CHECK(shared) {
  Array<int> out(40 * 64);
  EXPECT(start(shared_sites, 40, 64, out.data()) == cudaSuccess);
  for (int good : out.get()) EXPECT(good == 1);
}

__global__ void places(uint32_t* out) {
  const unsigned block =
      blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * static_cast<unsigned>(blockIdx.z));
  const unsigned thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
  const unsigned id = block * (blockDim.x * blockDim.y * blockDim.z) + thread;
  atomicAdd(out + id, static_cast<unsigned>(warpSize) - 31u + threadIdx.z + 16u * blockIdx.y +
                          256u * gridDim.z);
}

CHECK(place) {
  Array<uint32_t> out(3 * 2 * 5 * 4 * 3 * 2);
  EXPECT(start(places, dim3(3, 2, 5), dim3(4, 3, 2), out.data()) == cudaSuccess);
  const std::vector<uint32_t> got = out.get();
  for (uint32_t i = 0; i < got.size(); ++i) {
    EXPECT(got[i] == 1 + i % 24 / 12 + 16 * (i / 24 / 3 % 2) + 256 * 5);
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc == 1) {
    for (const auto& [name, run] : checks()) puts(name.c_str());
    return 0;
  }
  for (int i = 1; i < argc; ++i) {
    const auto found = checks().find(argv[i]);
    if (found == checks().end()) return 2;
    found->second();
  }
  return 0;
}
