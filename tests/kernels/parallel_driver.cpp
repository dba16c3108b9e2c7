// Checks parallel_for; run by test_parallel.py with the name of a check. Exits 0 if it holds.
#include "cpu/shared/parallel.h"

#include "driver.h"

#include <pthread.h>
#include <sched.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cfenv>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <set>
#include <stdexcept>
#include <thread>
#include <vector>

namespace {

// Every task of a call runs exactly once.
void run_and_check(std::int64_t tasks) {
  std::vector<std::atomic<int>> runs(static_cast<std::size_t>(tasks));
  mpembed::cpu::parallel(tasks, [&](std::int64_t t) { runs[static_cast<std::size_t>(t)]++; });
  for (auto& r : runs) CHECK(r == 1);
}

void once() {
  for (int threads : {1, 2, 3, 8, 2, 40, 1}) {
    CHECK(mpembed::cpu::set_threads(threads));
    CHECK(mpembed::cpu::max_threads() == threads);
    for (std::int64_t tasks : {0, 1, 2, 3, 7, 100, 5000}) {
      for (int repeat = 0; repeat < 50; ++repeat) run_and_check(tasks);
    }
  }
}

// Plain memory written by the caller is seen by tasks, and what tasks write by the caller.
void memory() {
  mpembed::cpu::set_threads(4);
  std::vector<int> in(64), out(64);
  for (int round = 1; round < 5000; ++round) {
    for (int& x : in) x = round;
    mpembed::cpu::parallel(64, [&](std::int64_t t) {
      const auto i = static_cast<std::size_t>(t);
      out[i] = in[i] + static_cast<int>(t);
    });
    for (int t = 0; t < 64; ++t) CHECK(out[static_cast<std::size_t>(t)] == round + t);
    if (round % 500 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(2));  // all parked
  }
}

// As many threads as asked for take part, although there may be fewer CPUs.
void threads() {
  for (int wanted : {2, 8}) {
    mpembed::cpu::set_threads(wanted);
    std::mutex mutex;
    std::set<std::thread::id> ids;
    std::atomic<int> arrived{0};
    mpembed::cpu::parallel(wanted, [&](std::int64_t) {
      {
        std::lock_guard<std::mutex> lock(mutex);
        ids.insert(std::this_thread::get_id());
      }
      ++arrived;
      while (arrived < wanted) std::this_thread::yield();  // each task keeps its thread
    });
    CHECK(static_cast<int>(ids.size()) == wanted);
  }
}

#ifdef __linux__
cpu_set_t allowed(pthread_t thread) {
  cpu_set_t set;
  CHECK(pthread_getaffinity_np(thread, sizeof set, &set) == 0);
  return set;
}

void allow(pthread_t thread, const cpu_set_t& set) {
  CHECK(pthread_setaffinity_np(thread, sizeof set, &set) == 0);
}

cpu_set_t only(int cpu) {
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(cpu, &set);
  return set;
}

struct Worker {
  pthread_t thread;
  int cpu;
};

// A call in which every thread takes part, on one CPU if it is given, and after which all are
// parked. Returns a worker.
Worker run_all(int threads, const cpu_set_t* one = nullptr) {
  const auto caller = pthread_self();
  std::mutex mutex;
  Worker worker{caller, -1};
  std::atomic<int> arrived{0};
  mpembed::cpu::set_threads(threads);
  mpembed::cpu::parallel(threads, [&](std::int64_t) {
    if (one != nullptr) allow(pthread_self(), *one);
    if (!pthread_equal(pthread_self(), caller)) {
      std::lock_guard<std::mutex> lock(mutex);
      worker = Worker{pthread_self(), sched_getcpu()};
    }
    ++arrived;
    while (arrived < threads) std::this_thread::yield();  // each task keeps its thread
  });
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  return worker;
}

// A worker that parked on the caller's CPU works on any other CPU it was allowed before from the
// next call on, wherever the caller may be. An affinity mask that others set is respected, and
// nothing is changed where there are fewer CPUs than threads.
void apart() {
  const auto caller = pthread_self();
  const cpu_set_t all = allowed(caller);
  const int cpus = CPU_COUNT(&all), cpu = sched_getcpu();
  if (cpus < 2) return;
  const cpu_set_t here = only(cpu);
  const auto left = [&](const Worker& worker, int busy) {
    cpu_set_t others = all;
    CPU_CLR(busy, &others);
    const cpu_set_t given = allowed(worker.thread);
    return CPU_EQUAL(&given, &others) != 0;
  };
  for (const int threads : {2, cpus + 1}) {
    const Worker worker = run_all(threads, &here);
    const cpu_set_t kept = threads == 2 ? here : all;
    allow(worker.thread, kept);
    allow(caller, all);
    for (int i = 0; i < 5; ++i) run_all(threads);
    const cpu_set_t given = allowed(worker.thread);
    CHECK(CPU_EQUAL(&given, &kept));
  }
  bool apart = false;
  for (int attempt = 0; attempt < 50 && !apart; ++attempt) {  // threads may be moved
    allow(run_all(2, &here).thread, all);
    Worker worker = run_all(2);
    if (left(worker, cpu)) {
      const int next = worker.cpu;
      allow(caller, only(next));
      worker = run_all(2);
      apart = left(worker, next);
    }
    allow(caller, all);
  }
  CHECK(apart);
}
#else
void apart() {}
#endif

void nested() {
  mpembed::cpu::set_threads(4);
  std::atomic<int> count{0};
  mpembed::cpu::parallel(10, [&](std::int64_t) {
    const auto outer = std::this_thread::get_id();
    mpembed::cpu::parallel(20, [&](std::int64_t) {
      CHECK(std::this_thread::get_id() == outer);
      ++count;
    });
  });
  CHECK(count == 200);
}

void concurrent() {
  mpembed::cpu::set_threads(3);
  std::vector<std::thread> callers;
  for (int i = 0; i < 6; ++i) {
    callers.emplace_back([] {
      for (int repeat = 0; repeat < 300; ++repeat) run_and_check(37);
    });
  }
  for (int n = 1; n < 100; ++n) mpembed::cpu::set_threads(1 + n % 5);
  for (auto& caller : callers) caller.join();
}

void expect_child(int threads_in_child) {
  const pid_t child = fork();
  CHECK(child >= 0);
  if (child == 0) {
    alarm(20);
    CHECK(mpembed::cpu::max_threads() == threads_in_child);
    run_and_check(1000);
    std::exit(0);  // runs the destructors: they must not wait for the parent's threads
  }
  int status = 0;
  CHECK(waitpid(child, &status, 0) == child);
  CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

void forked() {
  mpembed::cpu::set_threads(4);
  expect_child(4);  // nothing has run yet: the child starts a pool of its own
  run_and_check(1000);
  expect_child(1);
  std::atomic<bool> stop{false};
  std::thread busy([&] {
    while (!stop) run_and_check(50);
  });
  for (int i = 0; i < 20; ++i) expect_child(1);
  stop = true;
  busy.join();
  run_and_check(1000);
}

void limits() {
  mpembed::cpu::set_threads(2);
  for (int bad : {0, -1, mpembed::cpu::kMaxThreads + 1}) CHECK(!mpembed::cpu::set_threads(bad));
  CHECK(mpembed::cpu::max_threads() == 2);
  CHECK(mpembed::cpu::set_threads(mpembed::cpu::kMaxThreads));
}

// The end of the process while another thread is in a call.
void leave() {
  mpembed::cpu::set_threads(3);
  std::thread([] {
    while (true) mpembed::cpu::parallel(100, [](std::int64_t) {});
  }).detach();
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
}

// Whether this thread rounds to nearest and keeps subnormals.
bool default_floats() {
  volatile float one = 1.0f, little = 0x1p-30f, smallest = 0x1p-126f;
  return one + little == one && -one - little == -one && smallest * 0.5f != 0.0f;
}

void set_odd_floats() {
  std::fesetround(FE_UPWARD);
#if defined(__x86_64__)
  __builtin_ia32_ldmxcsr(__builtin_ia32_stmxcsr() | 0x8040);  // flush to zero, denormals are zero
#elif defined(__aarch64__)
  std::uint64_t control;
  asm volatile("mrs %0, fpcr" : "=r"(control));
  asm volatile("msr fpcr, %0" : : "r"(control | std::uint64_t{1} << 24));
#endif
}

// Tasks compute in the default floating-point environment; the caller's own is left as it was.
void floats() {
  std::fenv_t ordinary;
  std::fegetenv(&ordinary);
  for (int threads : {1, 4}) {
    mpembed::cpu::set_threads(threads);
    for (std::int64_t tasks : {1, 50}) {
      for (bool odd : {true, false}) {
        odd ? set_odd_floats() : static_cast<void>(std::fesetenv(&ordinary));
        std::atomic<int> wrong{0};
        mpembed::cpu::parallel(tasks, [&](std::int64_t) {
          if (!default_floats()) ++wrong;
          if (threads > 1) std::this_thread::sleep_for(std::chrono::milliseconds(1));
        });
        CHECK(wrong == 0);
        CHECK(default_floats() == !odd);
      }
    }
  }
}

void throwing() {
  mpembed::cpu::set_threads(2);
  mpembed::cpu::parallel(10, [](std::int64_t t) {
    if (t == 5) throw std::runtime_error("thrown by a task");
  });
}

// Prints what the environment gives: threads, and whether the variable is valid.
void environment() {
  std::printf("%d %d\n", mpembed::cpu::max_threads(), mpembed::cpu::threads_env_valid());
}

void cost() {
  for (int threads : {1, 2}) {
    mpembed::cpu::set_threads(threads);
    constexpr int kCalls = 200000;
    const auto begin = std::chrono::steady_clock::now();
    for (int i = 0; i < kCalls; ++i) mpembed::cpu::parallel(2, [](std::int64_t) {});
    const std::chrono::duration<double> time = std::chrono::steady_clock::now() - begin;
    std::printf("%d threads: %.3f us a call\n", threads, time.count() / kCalls * 1e6);
  }
}

}  // namespace

int main(int argc, char** argv) {
  const Check checks[] = {{"once", once},
                          {"memory", memory},
                          {"threads", threads},
                          {"apart", apart},
                          {"nested", nested},
                          {"forked", forked},
                          {"concurrent", concurrent},
                          {"limits", limits},
                          {"leave", leave},
                          {"floats", floats},
                          {"throwing", throwing},
                          {"environment", environment},
                          {"cost", cost}};
  return run_check(checks, argc, argv);
}
