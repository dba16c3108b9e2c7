// How a kernel's items are cut into tasks. A task is a range of neighbouring items; the number of
// tasks and their borders depend on the number of items alone, never on that of the threads.
#pragma once

#include <cstdint>
#include <type_traits>

#include "cpu/shared/parallel.h"
#include "mpembed/macros.h"

MPE_BEGIN

constexpr int64_t kMaxTasks = 256;

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }

// The number of tasks of about `task_size` items each; at least one.
inline int64_t task_count(int64_t items, int64_t task_size) {
  const int64_t tasks = ceil_div(items, task_size);
  return tasks < 1 ? 1 : (tasks > kMaxTasks ? kMaxTasks : tasks);
}

// The first item of a task.
inline int64_t task_begin(int64_t items, int64_t tasks, int64_t task) {
  return items / tasks * task + min64(task, items % tasks);
}

// Calls f(begin, end) or f(task, begin, end) for each of `tasks` ranges of the items, in parallel.
template <class Function>
inline void parallel_range(int64_t items, int64_t tasks, const Function& f) {
  // f is copied: what it refers to is then as near as if this were written out at the call.
  cpu::parallel(tasks, [items, tasks, f](int64_t task) {
    const int64_t begin = task_begin(items, tasks, task);
    const int64_t end = task_begin(items, tasks, task + 1);
    if constexpr (std::is_invocable_v<const Function&, int64_t, int64_t, int64_t>) {
      f(task, begin, end);
    } else {
      f(begin, end);
    }
  });
}

// Calls f(item) for each item, in parallel.
template <class Function>
inline void parallel_each(int64_t items, int64_t tasks, const Function& f) {
  parallel_range(items, tasks, [f](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) f(i);
  });
}

MPE_END
