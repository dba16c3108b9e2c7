// The CPUs that threads may run on, and how a worker is kept off its caller's CPU.
#pragma once

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <thread>
#include <utility>

#ifdef __linux__
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace mpembed::cpu {

#ifdef __linux__

// A thread's affinity mask; empty if the system did not tell it.
class CpuSet {
 public:
  CpuSet() noexcept = default;
  explicit CpuSet(int thread) noexcept {                   // 0: the calling thread
    for (int cpus = 1024; cpus <= (1 << 20); cpus *= 4) {  // grows until the kernel's mask fits
      if (!allocate(CPU_ALLOC_SIZE(cpus))) return;
      const int error = sched_getaffinity(thread, bytes_, set_) == 0 ? 0 : errno;
      if (error == 0 && count() > 0) return;
      CPU_FREE(set_);
      set_ = nullptr;
      if (error != EINVAL) return;
    }
  }
  ~CpuSet() { CPU_FREE(set_); }
  CpuSet(const CpuSet&) = delete;
  CpuSet& operator=(CpuSet&& other) noexcept {
    std::swap(set_, other.set_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }

  int count() const noexcept { return set_ == nullptr ? 0 : CPU_COUNT_S(bytes_, set_); }
  bool operator==(const CpuSet& other) const noexcept {
    return count() > 0 && bytes_ == other.bytes_ && other.count() > 0 &&
           CPU_EQUAL_S(bytes_, set_, other.set_);
  }
  // Becomes the other mask without a CPU.
  void copy_without(int cpu, const CpuSet& other) noexcept {
    CPU_FREE(set_);
    set_ = nullptr;
    if (other.set_ == nullptr || !allocate(other.bytes_)) return;
    std::memcpy(set_, other.set_, bytes_);
    CPU_CLR_S(static_cast<std::size_t>(cpu), bytes_, set_);
  }
  // Not pthread_setaffinity_np: the kernels would then need glibc 2.34, where it has a new version.
  void give_to(int thread) const noexcept { sched_setaffinity(thread, bytes_, set_); }

 private:
  bool allocate(std::size_t bytes) noexcept {
    set_ = CPU_ALLOC(bytes * 8);
    bytes_ = bytes;
    return set_ != nullptr;
  }

  cpu_set_t* set_ = nullptr;
  std::size_t bytes_ = 0;
};

inline int current_cpu() noexcept { return sched_getcpu(); }
inline int current_thread() noexcept { return static_cast<int>(syscall(SYS_gettid)); }

inline int available_cpus() noexcept {
  const int count = CpuSet(0).count();
  return count > 0 ? count : std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

#else

inline int current_cpu() noexcept { return -1; }
inline int current_thread() noexcept { return 0; }
inline int available_cpus() noexcept {
  return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

#endif

// The CPU on which a worker parked. Some systems wake a thread there, or on the CPU of whoever
// wakes it, even if that is the busy caller's and others are idle; the worker would then wait for
// the whole job.
class LastCpu {
 public:
  void record() noexcept {
    if (thread_.load(std::memory_order_relaxed) == 0) thread_.store(current_thread());
    cpu_.store(current_cpu(), std::memory_order_relaxed);
  }

  // Keeps the worker off the caller's CPU `caller`, if it parked there, until it has to avoid
  // another one. An affinity mask that others gave the worker is respected.
  void avoid(int caller) noexcept {
#ifdef __linux__
    const int worker = thread_.load();
    if (caller < 0 || worker == 0 || cpu_.load(std::memory_order_relaxed) != caller) return;
    CpuSet now(worker);
    if (!(now == given_)) allowed_ = std::move(now);
    given_.copy_without(caller, allowed_);
    if (given_.count() > 0) given_.give_to(worker);
    cpu_.store(-1, std::memory_order_relaxed);
#else
    static_cast<void>(caller);
#endif
  }

 private:
  std::atomic<int> cpu_{-1};
  std::atomic<int> thread_{0};
#ifdef __linux__
  CpuSet allowed_;  // the mask that others gave the worker
  CpuSet given_;    // the one that avoid() made of it
#endif
};

}  // namespace mpembed::cpu
