// The CPUs that threads may run on, and how a worker is kept off its caller's.
#pragma once

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <thread>

#ifdef __linux__
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace mpe {

#ifdef __linux__

// The CPUs of the calling thread's affinity mask.
class CpuSet {
 public:
  CpuSet() noexcept {
    for (int cpus = 1024; cpus <= (1 << 20); cpus *= 4) {  // grows until the kernel's mask fits
      set_ = CPU_ALLOC(cpus);
      if (set_ == nullptr) return;
      bytes_ = CPU_ALLOC_SIZE(cpus);
      const int rc = sched_getaffinity(0, bytes_, set_);
      const int error = errno;
      if (rc == 0 && count() > 0) return;
      CPU_FREE(set_);
      set_ = nullptr;
      if (error != EINVAL) return;
    }
  }
  ~CpuSet() {
    if (set_ != nullptr) CPU_FREE(set_);
  }
  CpuSet(const CpuSet&) = delete;
  CpuSet& operator=(const CpuSet&) = delete;

  // 0 if the system did not say.
  int count() const noexcept { return set_ == nullptr ? 0 : CPU_COUNT_S(bytes_, set_); }
  void remove(int cpu) noexcept {
    if (set_ != nullptr) CPU_CLR_S(static_cast<std::size_t>(cpu), bytes_, set_);
  }
  // Not pthread_setaffinity_np: that has a new version in glibc 2.34, which the kernels would need.
  void give_to(int thread) const noexcept { sched_setaffinity(thread, bytes_, set_); }

 private:
  cpu_set_t* set_ = nullptr;
  std::size_t bytes_ = 0;
};

inline int current_cpu() noexcept { return sched_getcpu(); }
inline int current_thread() noexcept { return static_cast<int>(syscall(SYS_gettid)); }

inline int available_cpus() noexcept {
  const int count = CpuSet().count();
  return count > 0 ? count : std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

#else

inline int current_cpu() noexcept { return -1; }
inline int current_thread() noexcept { return 0; }
inline int available_cpus() noexcept {
  return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

#endif

// Where a worker went to sleep. Some kernels wake it there, or on the CPU of whoever wakes it, even
// if that is the caller's, which is busy, and others are idle: it would then wait for the whole
// job.
class Place {
 public:
  void note() noexcept {
    if (thread_.load(std::memory_order_relaxed) == 0) thread_.store(current_thread());
    cpu_.store(current_cpu(), std::memory_order_relaxed);
  }

  // Keeps the worker off the caller's CPU `here`, if that is where it sleeps.
  void leave(int here) noexcept {
#ifdef __linux__
    const int worker = thread_.load();
    if (here < 0 || worker == 0 || cpu_.load(std::memory_order_relaxed) != here) return;
    CpuSet others;
    others.remove(here);
    if (others.count() > 0) others.give_to(worker);
    cpu_.store(-1, std::memory_order_relaxed);
#else
    static_cast<void>(here);
#endif
  }

 private:
  std::atomic<int> cpu_{-1};
  std::atomic<int> thread_{0};
};

}  // namespace mpe
