// Running a kernel's tasks on several threads.
//
// A kernel is cut into independent tasks whose number and borders never depend on the number of
// threads (tasks.h). Any thread may run any task in any order, so results depend on neither.
#pragma once

#include <cstdint>
#include <memory>
#include <type_traits>

#include "mpembed/contract.h"

namespace mpembed::cpu {

constexpr int kMaxThreads = MPE_MAX_THREADS;

// Threads a call may use, the caller included: set_threads, else MPEMBED_NUM_THREADS, else
// OMP_NUM_THREADS, else the CPUs of the affinity mask. 1 in a process that was forked after the
// pool had started.
int max_threads() noexcept;

// Returns false, and changes nothing, unless 1 <= threads <= kMaxThreads. There may be more threads
// than CPUs. Takes effect at the next call.
bool set_threads(int threads) noexcept;

// False if MPEMBED_NUM_THREADS is set to anything but an integer in 1..kMaxThreads; the variable is
// then ignored.
bool threads_env_valid() noexcept;

// Runs fn(context, task) once for each task in [0, tasks), on the caller and the pool's threads,
// and returns when all are done. Tasks see the default floating-point environment, whatever the
// caller's is: kernels do all their arithmetic in tasks. fn must not throw (the process is
// terminated if it does). Calls made from within a task, or while another thread is in a call, run
// serially in the calling thread.
void parallel_for(std::int64_t tasks, void (*fn)(void* context, std::int64_t task),
                  void* context) noexcept;

// parallel_for over a callable. Internal linkage: this header is compiled once per SIMD level, and
// the levels' copies must not be merged.
template <class Function>
static inline void parallel(std::int64_t tasks, Function&& f) noexcept {
  using Callable = std::remove_reference_t<Function>;
  void* context = const_cast<void*>(static_cast<const void*>(std::addressof(f)));
  parallel_for(
      tasks, [](void* c, std::int64_t task) { (*static_cast<Callable*>(c))(task); }, context);
}

}  // namespace mpembed::cpu
