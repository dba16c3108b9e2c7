// parallel_for and the number of threads: see parallel.h for what they promise.
#include "parallel.h"

#include <algorithm>
#include <atomic>
#include <cctype>
#include <cerrno>
#include <cstdlib>
#include <new>

#include <pthread.h>

#include "cpus.h"
#include "float_environment.h"
#include "thread_pool.h"

namespace mpembed::cpu {
namespace {

// The variable's value; 0 if it is unset or empty, -1 if it is not a thread count.
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

// What OMP_NUM_THREADS says, at most kMaxThreads; 0 if it is unset or, as OpenMP does, ignored. Of
// a list, one number a level of nesting, it is the first.
int openmp_threads() noexcept {
  const char* text = std::getenv("OMP_NUM_THREADS");
  if (text == nullptr) return 0;
  char* end = nullptr;
  errno = 0;
  const long value = std::strtol(text, &end, 10);
  if (end == text || errno != 0 || value < 1) return 0;
  while (std::isspace(static_cast<unsigned char>(*end)) != 0) ++end;
  if (*end != '\0' && *end != ',') return 0;
  return static_cast<int>(std::min<long>(value, kMaxThreads));
}

int default_threads() noexcept {
  const int own = env_threads();
  if (own > 0) return own;
  const int openmp = openmp_threads();
  return openmp > 0 ? openmp : std::min(available_cpus(), kMaxThreads);
}

std::atomic<int> g_threads{0};  // 0: not yet determined
std::atomic<bool> g_started{false};
std::atomic<bool> g_forked{false};
std::atomic<bool> g_busy{false};
ThreadPool* g_pool = nullptr;  // guarded by g_busy

// The pool's threads do not exist in a forked child, and its locks may be held: never touch it.
void in_child() noexcept {
  if (g_started.load()) g_forked.store(true);
}

struct PoolLifetime {
  PoolLifetime() { pthread_atfork(nullptr, nullptr, in_child); }
  // Joins the workers when the process ends or the library is unloaded. A thread that is in a call
  // at that moment keeps the pool; one that comes later finds it busy and runs serially.
  ~PoolLifetime() {
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

void parallel_for(std::int64_t tasks, TaskFunction fn, void* context) noexcept {
  const int threads = max_threads();
  if (tasks > 1 && threads > 1) {
    g_started.store(true);  // before g_busy: a child forked from here on stays serial
    if (!g_busy.exchange(true, std::memory_order_acquire)) {
      if (g_pool == nullptr) g_pool = new (std::nothrow) ThreadPool;
      const bool parallel = g_pool != nullptr;
      if (parallel) g_pool->run(tasks, fn, context, threads);
      g_busy.store(false, std::memory_order_release);
      if (parallel) return;
    }
  }
  const DefaultFloatEnvironment environment;
  for (std::int64_t task = 0; task < tasks; ++task) fn(context, task);
}

}  // namespace mpembed::cpu
