// The scheduler: which thread of which warp of which resident block runs next.
#include <string.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <mutex>
#include <numeric>

#include "emu/device_memory.h"
#include "emu/graph.h"
#include "emu/launch.h"
#include "emu/options.h"
#include "emu/state.h"

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;
const int warpSize = 32;

namespace simt {

Lane* self = nullptr;
Launch* launch = nullptr;

namespace {

using Clock = std::chrono::steady_clock;

int64_t launches = 0;
int64_t launches_on[16] = {};  // by the device that was set, which options.cpp keeps below 16
int uninterrupted = 0;
int64_t threads = 0;

uint64_t splitmix(uint64_t z) {
  z += 0x9E3779B97F4A7C15u;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
  return z ^ (z >> 31);
}

void lane_main() {
  fiber_started();
  (*launch->body)();
  lane_exits(current());
  fiber_end();
}

// A random set bit, all with the same probability.
unsigned random_bit(unsigned mask) {
  const uint64_t bits = static_cast<uint64_t>(__builtin_popcount(mask));
  for (uint64_t skip = (static_cast<uint64_t>(next_random()) * bits) >> 32; skip != 0; --skip) {
    mask &= mask - 1;
  }
  return static_cast<unsigned>(__builtin_ctz(mask));
}

class Scheduler {
 public:
  Scheduler() : start_(Clock::now()) {
    const dim3 grid = launch->grid;
    num_blocks_ = static_cast<uint64_t>(grid.x) * grid.y * grid.z;
    if (options().random && num_blocks_ <= kShuffledBlocks) {
      order_.resize(num_blocks_);
      std::iota(order_.begin(), order_.end(), 0u);
      for (size_t i = order_.size(); i > 1; --i) std::swap(order_[i - 1], order_[draw(i)]);
    }
    const size_t resident =
        static_cast<size_t>(std::min<uint64_t>(options().resident, num_blocks_));
    while (pool().size() < resident) pool().push_back(std::make_unique<Block>());
    for (size_t i = 0; i < resident; ++i) {
      pool()[i]->shared.start_launch();
      load(*pool()[i], i);
      live_.push_back(i);
    }
  }

  void run() {
    while (!live_.empty() && launch->error == cudaSuccess) {
      if (options().random) {
        step(draw(live_.size()));
      } else {
        for (size_t i = 0; i < live_.size(); ++i) step(i);
      }
    }
  }

 private:
  static constexpr uint64_t kShuffledBlocks = 1u << 22;

  // Blocks keep their fibers and shared memory between launches.
  static std::vector<std::unique_ptr<Block>>& pool() {
    static std::vector<std::unique_ptr<Block>> blocks;
    return blocks;
  }

  static size_t draw(size_t n) {
    return static_cast<size_t>((static_cast<uint64_t>(next_random()) * n) >> 32);
  }

  // Puts the next block of the grid into resident place `place`.
  void load(Block& block, size_t place) {
    const uint64_t linear = order_.empty() ? next_block_ : order_[next_block_];
    ++next_block_;
    const dim3 grid = launch->grid, dim = launch->block;
    block.index = uint3{static_cast<unsigned>(linear % grid.x),
                        static_cast<unsigned>(linear / grid.x % grid.y),
                        static_cast<unsigned>(linear / grid.x / grid.y)};
    const size_t n = static_cast<size_t>(dim.x) * dim.y * dim.z;
    if (block.lanes.size() != n) {
      block.lanes.assign(n, Lane());
      block.warps.assign((n + 31) / 32, Warp());
    }
    block.alive = static_cast<unsigned>(n);
    block.at_barrier = 0;
    block.first_at_barrier = nullptr;
    block.ready_warps = 0;
    block.shared.start_block();
    for (size_t i = 0; i < block.warps.size(); ++i) {
      Warp& w = block.warps[i];
      w.block = &block;
      w.lanes = &block.lanes[i * 32];
      w.index = static_cast<unsigned>(i);
      w.exists = n - i * 32 >= 32 ? 0xFFFFFFFFu : (1u << (n - i * 32)) - 1;
      w.ready = w.waiting = w.exited = 0;
    }
    for (size_t i = 0; i < n; ++i) {
      Lane& lane = block.lanes[i];
      const unsigned t = static_cast<unsigned>(i);
      lane.thread_index = uint3{t % dim.x, t / dim.x % dim.y, t / dim.x / dim.y};
      lane.warp = &block.warps[i / 32];
      lane.id = t % 32;
      fiber_prepare(lane.fiber, place * 1024 + i, lane_main);
      make_ready(lane);
    }
    threads += static_cast<int64_t>(n);
  }

  // Runs a warp of live block i for a while.
  void step(size_t i) {
    Block& block = *pool()[live_[i]];
    if (options().random) {
      Warp& w = block.warps[random_bit(block.ready_warps)];
      do {
        enter(w.lanes[random_bit(w.ready)]);
      } while (launch->error == cudaSuccess && w.ready != 0 && (next_random() & 7) != 0);
      settle(w);
    } else {
      for (Warp& w : block.warps) {
        for (unsigned ready = w.ready; ready != 0; ready &= ready - 1) {
          enter(w.lanes[__builtin_ctz(ready)]);
          if (launch->error != cudaSuccess) return;
        }
        settle(w);
      }
    }
    if (launch->error != cudaSuccess) return;
    if (block.alive == 0) {
      block.shared.check(block);
      if (next_block_ < num_blocks_) {
        load(block, live_[i]);
      } else {
        live_.erase(live_.begin() + static_cast<std::ptrdiff_t>(i));
      }
    } else if (block.ready_warps == 0) {
      report_stuck(block, "deadlock: no thread of the block can go on");
      end_launch(cudaErrorLaunchFailure);
    }
  }

  static void settle(const Warp& w) {
    if (w.ready == 0) w.block->ready_warps &= ~(1u << w.index);
  }

  void enter(Lane& lane) {
    self = &lane;
    threadIdx = lane.thread_index;
    blockIdx = lane.warp->block->index;
    fiber_enter(lane.fiber);
    self = nullptr;
    if ((++steps_ & 0xFFFF) == 0 &&
        std::chrono::duration<double>(Clock::now() - start_).count() > options().timeout) {
      report_stuck(*lane.warp->block, "the launch takes longer than SIMT_TIMEOUT");
      end_launch(cudaErrorLaunchTimeout);
    }
  }

  Clock::time_point start_;
  uint64_t steps_ = 0;
  uint64_t num_blocks_;
  uint64_t next_block_ = 0;
  std::vector<uint32_t> order_;
  std::vector<size_t> live_;  // places in the pool
};

bool is_valid(const cudaLaunchConfig_t& c) {
  const dim3 g = c.gridDim, b = c.blockDim;
  const uint64_t threads_a_block = static_cast<uint64_t>(b.x) * b.y * b.z;
  return g.x != 0 && g.x <= 0x7FFFFFFF && g.y != 0 && g.y <= 65535 && g.z != 0 && g.z <= 65535 &&
         threads_a_block != 0 && threads_a_block <= 1024 && b.z <= 64 && c.dynamicSmemBytes == 0;
}

}  // namespace

uint32_t next_random() {
  uint64_t& x = launch->random;
  x ^= x << 13;
  x ^= x >> 7;
  x ^= x << 17;
  return static_cast<uint32_t>((x * 0x2545F4914F6CDD1Du) >> 32);
}

void make_ready(Lane& lane) {
  lane.state = State::kReady;
  lane.warp->ready |= 1u << lane.id;
  lane.warp->block->ready_warps |= 1u << lane.warp->index;
}

void yield() {
  Lane& lane = current();
  if (lane.state != State::kReady) lane.warp->ready &= ~(1u << lane.id);
  fiber_leave(lane.fiber);
}

Uninterrupted::Uninterrupted() { ++uninterrupted; }
Uninterrupted::~Uninterrupted() { --uninterrupted; }

void preempt() {
  if (self == nullptr || uninterrupted != 0) return;
  // Under lockstep, too, a loop that waits for another thread must let that thread run.
  const bool now = options().random ? (next_random() & 0xFFu) < options().preempt
                                    : (++launch->points & 0x3Fu) == 0;
  if (now) yield();
}

void plain_access() {
  if (self == nullptr || uninterrupted != 0 || !options().random) return;
  if ((next_random() & 31u) == 0 && options().preempt != 0) yield();
}

unsigned lane_id() { return self == nullptr ? 0 : current().id; }

void* shared_array(const void* key, size_t bytes, size_t align, const char* name, Site site) {
  if (self == nullptr) fault(site, "shared memory outside of a kernel");
  return current().warp->block->shared.find(key, bytes, align, name, site);
}

cudaError_t run_now(const cudaLaunchConfig_t& config, const void* kernel,
                    const std::function<void()>& body) {
  install_signal_handler();
  const DeviceAccess access;
  const auto start = Clock::now();
  Launch l;
  l.kernel = kernel;
  l.thread = pthread_self();
  l.body = &body;
  l.grid = config.gridDim;
  l.block = config.blockDim;
  l.random = splitmix(options().seed ^ splitmix(static_cast<uint64_t>(launches++))) | 1;
  use_context();
  ++launches_on[current_device()];
  launch = &l;
  blockDim = l.block;
  gridDim = l.grid;
  const int64_t threads_before = threads;
  Scheduler().run();
  self = nullptr;
  check_guards();
  if (options().log) {
    const double ms = std::chrono::duration<double>(Clock::now() - start).count() * 1e3;
    fprintf(stderr, "SIMT: %s<<<(%u,%u,%u), (%u,%u,%u)>>> %lld threads, %.3f ms\n",
            kernel_name(kernel).c_str(), l.grid.x, l.grid.y, l.grid.z, l.block.x, l.block.y,
            l.block.z, static_cast<long long>(threads - threads_before), ms);
  }
  launch = nullptr;
  if (l.error != cudaSuccess) set_sticky_error(l.error);
  return cudaSuccess;
}

cudaError_t run_launch(const cudaLaunchConfig_t& config, const void* kernel,
                       const std::function<void()>& body) {
  const std::lock_guard<std::recursive_mutex> lock(runtime_mutex());
  ++counts().calls;
  if (const cudaError_t before = set_error(cudaSuccess); before != cudaSuccess) return before;
  if (!is_valid(config)) return set_error(cudaErrorInvalidConfiguration);
  const cudaError_t error = submit(config.stream, [=] { return run_now(config, kernel, body); });
  // As on a device, the launch itself succeeds and later calls return the error.
  return error != cudaSuccess ? set_error(error) : cudaSuccess;
}

}  // namespace simt

extern "C" int64_t simt_launches(void) { return simt::launches; }
extern "C" int64_t simt_launches_on(int device) { return simt::launches_on[device]; }
extern "C" int64_t simt_threads(void) { return simt::threads; }
