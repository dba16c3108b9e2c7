// Waiting: a short while by spinning, then by parking the thread.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>

#include <pthread.h>
#if defined(__x86_64__) || defined(__i386__)
#include <immintrin.h>
#endif

namespace mpembed::cpu {

constexpr std::chrono::microseconds kSpin{50};  // longer than the gap between two kernels of a step

inline void cpu_relax() noexcept {
#if defined(__x86_64__) || defined(__i386__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// True as soon as `ready` is, false once the spinning time is over.
template <class Ready>
bool spin_until(const Ready& ready) noexcept {
  const auto deadline = std::chrono::steady_clock::now() + kSpin;
  do {
    for (int i = 0; i < 32; ++i) {
      if (ready()) return true;
      cpu_relax();
    }
  } while (std::chrono::steady_clock::now() < deadline);
  return false;
}

// Parks one thread until it is unparked. park() raises the flag before it looks at `ready` again,
// and unpark() is called after `ready` was made true (both sequentially consistent): no wake-up is
// lost.
class Parker {
 public:
  template <class Ready>
  void park(const Ready& ready) {
    const std::lock_guard<std::mutex> lock(mutex_);
    parked_.store(true);
    // Not condition_.wait(lock, ready), which does the same: it has a new version in GCC 12's
    // libstdc++, and a library linked against that would not load with an older one.
    while (!ready()) pthread_cond_wait(condition_.native_handle(), mutex_.native_handle());
    parked_.store(false);
  }
  bool parked() const noexcept { return parked_.load(); }
  void unpark() {
    if (!parked()) return;
    {
      std::lock_guard<std::mutex> lock(mutex_);
    }  // the thread is waiting now, or has seen `ready`
    condition_.notify_one();
  }

 private:
  std::mutex mutex_;
  std::condition_variable condition_;
  std::atomic<bool> parked_{false};
};

}  // namespace mpembed::cpu
