// The threads that run a kernel's tasks.
//
// One atomic word, `state`, describes the current job: its epoch, how many workers may take part,
// whether it is open, and how many workers are inside. A worker enters by compare and swap on the
// whole word, so it can never enter a job that was closed meanwhile, and the caller waits only for
// workers that did enter. A worker that wakes late therefore costs nothing.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

#include "cpus.h"
#include "float_environment.h"
#include "parallel.h"
#include "parker.h"

namespace mpembed::cpu {

using TaskFunction = void (*)(void* context, std::int64_t task);

class ThreadPool {
 public:
  // Only one thread at a time calls run() or stop().
  void run(std::int64_t tasks, TaskFunction fn, void* context, int threads) noexcept {
    const int helpers = start(static_cast<int>(std::min<std::int64_t>(threads, tasks)) - 1);
    fn_ = fn;
    context_ = context;
    tasks_ = tasks;
    next_.store(0, std::memory_order_relaxed);
    spin_.store(threads <= cpus_, std::memory_order_relaxed);
    const std::uint64_t epoch = (state_.load(std::memory_order_relaxed) >> kEpochShift) + 1;
    state_.store(epoch << kEpochShift | static_cast<std::uint64_t>(helpers) << kLimitShift | kOpen);
    // Where there are more threads than CPUs, the system places them best.
    const int here = threads <= cpus_ ? current_cpu() : -1;
    for (int i = 0; i < helpers; ++i) workers_[static_cast<std::size_t>(i)]->wake_off(here);
    run_tasks();
    state_.fetch_and(~kOpen);
    const auto empty = [this] { return (state_.load() & kInside) == 0; };
    if (empty() || (spin_.load(std::memory_order_relaxed) && spin_until(empty))) return;
    caller_.park(empty);
  }

  void stop() noexcept {
    stop_.store(true);
    for (auto& worker : workers_) {
      worker->parker.unpark();
      worker->thread.join();
    }
  }

 private:
  // state: epoch (32 bits) | workers that may enter (15) | open (1) | workers inside (16)
  static constexpr std::uint64_t kInside = 0xffff;
  static constexpr std::uint64_t kOpen = 1u << 16;
  static constexpr int kLimitShift = 17;
  static constexpr std::uint64_t kLimitMask = 0x7fff;
  static constexpr int kEpochShift = 32;
  static_assert(kMaxThreads <= static_cast<int>(kLimitMask),
                "the limit field holds any thread count");

  struct Worker {
    Parker parker;
    LastCpu last_cpu;
    std::thread thread;

    // Wakes it, on another CPU than this one (-1: on any).
    void wake_off(int cpu) {
      if (!parker.parked()) return;
      last_cpu.avoid(cpu);
      parker.unpark();
    }
  };

  // Makes sure of `wanted` workers; returns how many there are to use, fewer if the system refuses.
  int start(int wanted) noexcept {
    try {
      while (static_cast<int>(workers_.size()) < wanted) {
        auto worker = std::make_unique<Worker>();
        Worker* self = worker.get();
        const int index = static_cast<int>(workers_.size());
        workers_.push_back(std::move(worker));
        try {
          self->thread = std::thread([this, self, index] { serve(*self, index); });
        } catch (...) {
          workers_.pop_back();
          throw;
        }
      }
    } catch (const std::exception&) {  // the system has no more threads or memory: go on with fewer
    }
    return std::min(wanted, static_cast<int>(workers_.size()));
  }

  // What a worker does until the pool stops.
  void serve(Worker& self, int index) noexcept {
    std::uint64_t seen = 0;
    const auto ready = [&] {
      const std::uint64_t state = state_.load();
      return stop_.load() || (may_enter(state, index) && state >> kEpochShift != seen);
    };
    while (true) {
      if (!(spin_.load(std::memory_order_relaxed) && spin_until(ready))) {
        self.last_cpu.record();
        self.parker.park(ready);
      }
      if (stop_.load()) return;
      if (enter(index, seen)) {
        run_tasks();
        if (((state_.fetch_sub(1) - 1) & (kInside | kOpen)) == 0) caller_.unpark();
      }
    }
  }

  static bool may_enter(std::uint64_t state, int index) noexcept {
    return (state & kOpen) != 0 && static_cast<int>(state >> kLimitShift & kLimitMask) > index;
  }

  bool enter(int index, std::uint64_t& seen) noexcept {
    std::uint64_t state = state_.load();
    while (may_enter(state, index)) {
      if (state_.compare_exchange_weak(state, state + 1)) {
        seen = state >> kEpochShift;
        return true;
      }
    }
    return false;
  }

  void run_tasks() noexcept {
    const DefaultFloatEnvironment environment;
    for (std::int64_t task = next_.fetch_add(1, std::memory_order_relaxed); task < tasks_;
         task = next_.fetch_add(1, std::memory_order_relaxed)) {
      fn_(context_, task);
    }
  }

  std::vector<std::unique_ptr<Worker>> workers_;
  Parker caller_;
  const int cpus_ = available_cpus();
  std::atomic<bool> stop_{false};
  std::atomic<bool> spin_{false};  // only while there is a CPU for every thread
  TaskFunction fn_ = nullptr;
  void* context_ = nullptr;
  std::int64_t tasks_ = 0;
  alignas(64) std::atomic<std::int64_t> next_{0};
  alignas(64) std::atomic<std::uint64_t> state_{0};
};

}  // namespace mpembed::cpu
