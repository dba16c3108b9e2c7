// The thread pool behind parallel_for: see parallel.h for what it promises.
//
// One atomic word, `state`, says everything about the current job: its epoch, how many workers may
// take part, whether it is open, and how many workers are inside. A worker enters by compare and
// swap on the whole word, so it can never enter a job that was closed meanwhile, and the caller
// waits only for workers that did enter. A worker that wakes late therefore costs nothing.
#include "parallel.h"

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <mutex>
#include <new>
#include <system_error>
#include <thread>
#include <vector>

#include <pthread.h>
#if defined(__x86_64__) || defined(__i386__)
#include <immintrin.h>
#endif

#include "cpus.h"

namespace mpe {
namespace {

using TaskFn = void (*)(void*, std::int64_t);

// state: epoch (32 bits) | workers that may enter (15) | open (1) | workers inside (16)
constexpr std::uint64_t kInside = 0xffff;
constexpr std::uint64_t kOpen = 1u << 16;
constexpr int kLimitShift = 17;
constexpr std::uint64_t kLimitMask = 0x7fff;
constexpr int kEpochShift = 32;
static_assert(kMaxThreads <= static_cast<int>(kLimitMask),
              "the limit field holds any thread count");

constexpr std::chrono::microseconds kSpin{50};  // longer than the gap between two kernels of a step

// The variable's value; 0 if it is unset or empty, -1 if it is no thread count.
int env_threads() noexcept {
  const char* text = std::getenv("MPEMBED_NUM_THREADS");
  if (text == nullptr || *text == '\0') return 0;
  if (*text < '0' || *text > '9') return -1;
  char* end = nullptr;
  errno = 0;
  const long value = std::strtol(text, &end, 10);
  return errno == 0 && *end == '\0' && value >= 1 && value <= kMaxThreads ? static_cast<int>(value)
                                                                          : -1;
}

int default_threads() noexcept {
  const int env = env_threads();
  return env > 0 ? env : std::min(available_cpus(), kMaxThreads);
}

// Tasks compute in the default floating-point environment (to nearest, subnormals kept, no traps),
// whatever the caller has set and whatever a worker inherited when it was created.
class DefaultFloats {
 public:
  DefaultFloats() noexcept : saved_(get()) { set(kDefault); }
  ~DefaultFloats() { set(saved_); }
  DefaultFloats(const DefaultFloats&) = delete;
  DefaultFloats& operator=(const DefaultFloats&) = delete;

 private:
#if defined(__x86_64__) || defined(__i386__)
  using Control = unsigned int;
  static constexpr Control kDefault = 0x1F80;
  static Control get() noexcept { return _mm_getcsr(); }
  static void set(Control control) noexcept { _mm_setcsr(control); }
#elif defined(__aarch64__)
  using Control = std::uint64_t;
  static constexpr Control kDefault = 0;
  static Control get() noexcept {
    Control control;
    asm volatile("mrs %0, fpcr" : "=r"(control));
    return control;
  }
  static void set(Control control) noexcept { asm volatile("msr fpcr, %0" : : "r"(control)); }
#else
  using Control = int;
  static constexpr Control kDefault = 0;
  static Control get() noexcept { return 0; }
  static void set(Control) noexcept {}
#endif

  const Control saved_;
};

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

// Where one thread sleeps. sleep() raises the flag before it looks at `ready` again, and wake() is
// called after `ready` was made true (both sequentially consistent): no wake-up is lost.
class Bed {
 public:
  template <class Ready>
  void sleep(const Ready& ready) {
    const std::lock_guard<std::mutex> lock(mutex_);
    asleep_.store(true);
    // What condition_.wait(lock, ready) does. That function itself has a new version in GCC 12's
    // libstdc++: linked against it, the kernels would ask for a newer library than all else does.
    while (!ready()) pthread_cond_wait(condition_.native_handle(), mutex_.native_handle());
    asleep_.store(false);
  }
  bool occupied() const noexcept { return asleep_.load(); }
  void wake() {
    if (!occupied()) return;
    {
      std::lock_guard<std::mutex> lock(mutex_);
    }  // it is in wait() now, or has seen `ready`
    condition_.notify_one();
  }

 private:
  std::mutex mutex_;
  std::condition_variable condition_;
  std::atomic<bool> asleep_{false};
};

class Pool {
 public:
  // Only one thread at a time calls run() or stop().
  void run(std::int64_t tasks, TaskFn fn, void* ctx, int threads) noexcept {
    const int helpers = start(static_cast<int>(std::min<std::int64_t>(threads, tasks)) - 1);
    fn_ = fn;
    ctx_ = ctx;
    tasks_ = tasks;
    next_.store(0, std::memory_order_relaxed);
    spin_.store(threads <= cpus_, std::memory_order_relaxed);
    const std::uint64_t epoch = (state_.load(std::memory_order_relaxed) >> kEpochShift) + 1;
    state_.store(epoch << kEpochShift | static_cast<std::uint64_t>(helpers) << kLimitShift | kOpen);
    // Where there are more threads than CPUs, the system shares these out best.
    const int here = threads <= cpus_ ? current_cpu() : -1;
    for (int i = 0; i < helpers; ++i) workers_[static_cast<std::size_t>(i)]->wake_off(here);
    work();
    state_.fetch_and(~kOpen);
    const auto empty = [this] { return (state_.load() & kInside) == 0; };
    if (empty() || (spin_.load(std::memory_order_relaxed) && spin_until(empty))) return;
    caller_.sleep(empty);
  }

  void stop() noexcept {
    stop_.store(true);
    for (auto& worker : workers_) {
      worker->bed.wake();
      worker->thread.join();
    }
  }

 private:
  struct Worker {
    Bed bed;
    Place place;
    std::thread thread;

    void wake_off(int cpu) {
      if (!bed.occupied()) return;
      place.leave(cpu);
      bed.wake();
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
    } catch (const std::exception&) {  // no thread or no memory to be had: go on with what there is
    }
    return std::min(wanted, static_cast<int>(workers_.size()));
  }

  void serve(Worker& self, int index) noexcept {
    std::uint64_t seen = 0;
    const auto ready = [&] {
      const std::uint64_t s = state_.load();
      return stop_.load() || ((s & kOpen) != 0 && s >> kEpochShift != seen &&
                              static_cast<int>(s >> kLimitShift & kLimitMask) > index);
    };
    while (true) {
      if (!(spin_.load(std::memory_order_relaxed) && spin_until(ready))) {
        self.place.note();
        self.bed.sleep(ready);
      }
      if (stop_.load()) return;
      if (enter(index, seen)) {
        work();
        if (((state_.fetch_sub(1) - 1) & (kInside | kOpen)) == 0) caller_.wake();
      }
    }
  }

  bool enter(int index, std::uint64_t& seen) noexcept {
    std::uint64_t s = state_.load();
    while ((s & kOpen) != 0 && static_cast<int>(s >> kLimitShift & kLimitMask) > index) {
      if (state_.compare_exchange_weak(s, s + 1)) {
        seen = s >> kEpochShift;
        return true;
      }
    }
    return false;
  }

  void work() noexcept {
    const DefaultFloats floats;
    for (std::int64_t t = next_.fetch_add(1, std::memory_order_relaxed); t < tasks_;
         t = next_.fetch_add(1, std::memory_order_relaxed)) {
      fn_(ctx_, t);
    }
  }

  std::vector<std::unique_ptr<Worker>> workers_;
  Bed caller_;
  const int cpus_ = available_cpus();
  std::atomic<bool> stop_{false};
  std::atomic<bool> spin_{false};  // only while there is a CPU for every thread
  TaskFn fn_ = nullptr;
  void* ctx_ = nullptr;
  std::int64_t tasks_ = 0;
  alignas(64) std::atomic<std::int64_t> next_{0};
  alignas(64) std::atomic<std::uint64_t> state_{0};
};

std::atomic<int> g_threads{0};  // 0: not yet determined
std::atomic<bool> g_started{false};
std::atomic<bool> g_forked{false};
std::atomic<bool> g_busy{false};
Pool* g_pool = nullptr;  // guarded by g_busy

// The pool's threads do not exist in a forked child, and its locks may be held: never touch it.
void in_child() noexcept {
  if (g_started.load()) g_forked.store(true);
}

struct Lifetime {
  Lifetime() { pthread_atfork(nullptr, nullptr, in_child); }
  // Joins the workers when the process ends or the library is unloaded. Whoever is in a call at
  // that moment keeps the pool; whoever comes later finds it busy and runs serially.
  ~Lifetime() {
    if (!g_forked.load() && !g_busy.exchange(true) && g_pool != nullptr) {
      g_pool->stop();
      delete g_pool;
      g_pool = nullptr;
    }
  }
} g_lifetime;

}  // namespace

bool threads_env_valid() noexcept { return env_threads() >= 0; }

int max_threads() noexcept {
  if (g_forked.load()) return 1;
  int threads = g_threads.load();
  if (threads == 0) {
    const int fresh = default_threads();
    threads = g_threads.compare_exchange_strong(threads, fresh) ? fresh : threads;
  }
  return threads;
}

bool set_threads(int threads) noexcept {
  if (threads < 1 || threads > kMaxThreads) return false;
  g_threads.store(threads);
  return true;
}

void parallel_for(std::int64_t tasks, TaskFn fn, void* ctx) noexcept {
  const int threads = max_threads();
  if (tasks > 1 && threads > 1) {
    g_started.store(true);  // before g_busy: a child forked from here on stays serial
    if (!g_busy.exchange(true, std::memory_order_acquire)) {
      if (g_pool == nullptr) g_pool = new (std::nothrow) Pool;
      const bool parallel = g_pool != nullptr;
      if (parallel) g_pool->run(tasks, fn, ctx, threads);
      g_busy.store(false, std::memory_order_release);
      if (parallel) return;
    }
  }
  const DefaultFloats floats;
  for (std::int64_t t = 0; t < tasks; ++t) fn(ctx, t);
}

}  // namespace mpe
