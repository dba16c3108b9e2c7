// The fused backward: a row's gradient summed in the contract's order, then one optimizer step.
#include "cpu/gradient.h"
#include "cpu/kernels.h"
#include "cpu/noise.h"
#include "cpu/records.h"
#include "cpu/row_update.h"

MPE_BEGIN
namespace {

constexpr int64_t kTaskLookups = 2048;
// Unique rows between a prefetch and its use: of a row, of its gradient, and of the bag of a
// lookup, which says where the gradient lies. The input order scatters gradients and bags.
constexpr int64_t kPrefetchDistance = 20;
constexpr int64_t kGradPrefetchDistance = 16;
constexpr int64_t kBagPrefetchDistance = 32;

// Where the non-finite rows of an update are reported.
struct NonfiniteReport {
  mpe_error* error;

  void add(const mpe_table& table, uint64_t key) const {
    const int64_t id = static_cast<int64_t>(key);
    __atomic_store_n(&error->status, MPE_ERR_NONFINITE, __ATOMIC_RELAXED);
    __atomic_fetch_add(&error->count, 1, __ATOMIC_RELAXED);
    int64_t seen = __atomic_load_n(&error->value, __ATOMIC_RELAXED);
    while (id < seen && !__atomic_compare_exchange_n(&error->value, &seen, id, true,
                                                     __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
    }
    if (table.stats != nullptr) {
      __atomic_fetch_add(table.stats + MPE_stat_nonfinite, 1, __ATOMIC_RELAXED);
    }
  }
};

// What one task works with.
struct Task {
  RowsInWork work;
  RecordEncoder encoder;
};

// New weights and states of the rows in work.
void step_rows(int32_t optimizer, const StepSettings& settings, RowsInWork& work) {
  if (optimizer >= MPE_NUM_OPTIMIZERS) return own_optimizer(optimizer)->step(&settings, &work);
  with_optimizer(optimizer, [&](auto kind) { RowStep<decltype(kind)>(settings, work).run(); });
}

StepSettings step_settings(const mpe_group& group, const StateShapes& shapes, int32_t t) {
  const mpe_table& table = group.tables[t];
  const auto bound = [](int32_t format) {
    return with_format(format, [](auto type) { return decltype(type)::kMaxAbsBits; });
  };
  StepSettings settings{group.optimizer->decay_mode,
                        group.optimizer->coefficients + t * MPE_MAX_COEFFICIENTS,
                        bound(table.precision),
                        {},
                        {}};
  for (int i = 0; i < shapes.num_elements; ++i) {
    settings.element_bounds[i] = bound(table.states[shapes.element[i]].format);
  }
  for (int i = 0; i < shapes.num_values; ++i) {
    settings.value_bounds[i] = bound(table.states[shapes.value[i]].format);
  }
  return settings;
}

// Unique rows of one table, several at a time. `unique` is a row's number among the unique rows,
// `j` among those in work.
class TableUpdate {
 public:
  TableUpdate(const Update& update, const StateShapes& shapes, const HotRows& hot, int32_t t,
              Task& task, const NonfiniteReport& report)
      : update_(update),
        shapes_(shapes),
        hot_(hot),
        t_(t),
        table_(update.group.tables[t]),
        settings_(step_settings(update.group, shapes, t)),
        spans_(update.group, shapes, table_),
        cached_(update.group, shapes),
        work_(task.work),
        encoder_(task.encoder),
        sample_(update.group, table_),
        report_(report) {}

  void run(int64_t begin, int64_t end) {
    const int64_t capacity = encoder_capacity(work_.dim);
    prefetch_rows(begin, begin + kPrefetchDistance, end);
    for (int64_t first = begin; first < end; first += capacity) {
      work_.n = min64(capacity, end - first);
      const int64_t last = first + work_.n;
      find_places(first);
      with_grad_rows(update_, t_, [&](const auto& grads) {
        prefetch_gradients(grads, first, last, end);
        sum_gradients(grads, first);
      });
      load_rows();
      load_states();
      step_rows(update_.group.optimizer->kind, settings_, work_);
      prefetch_rows(first + kPrefetchDistance, last + kPrefetchDistance, end);
      store(first);
    }
  }

 private:
  int64_t row_of(int64_t unique) const {
    return static_cast<int64_t>(update_.unique.rows[unique]) - table_.base;
  }

  int64_t first_position(int64_t unique) const {
    return update_.unique.positions[update_.unique.starts[unique]];
  }

  // Unique rows [first, last), but none from `end` on.
  void prefetch_rows(int64_t first, int64_t last, int64_t end) const {
    for (int64_t i = first; i < min64(last, end); ++i) {
      const int64_t slot = update_.slot(i);
      if (slot < 0) {
        spans_.prefetch(row_of(i), true);
      } else {
        cached_.prefetch(slot, true);
        __builtin_prefetch(update_.group.cache->tags + slot, 1, 3);
      }
    }
  }

  void find_places(int64_t first) {
    for (int64_t j = 0; j < work_.n; ++j) work_.rows[j] = row_of(first + j);
    for (int64_t j = 0; j < work_.n; ++j) work_.slots[j] = update_.slot(first + j);
  }

  // Those of the first occurrences of the rows that come after unique rows [first, last). Loops of
  // their own, here and above, keep more misses under way than one loop of prefetches and sums.
  template <class Rows>
  void prefetch_gradients(const Rows& grads, int64_t first, int64_t last, int64_t end) const {
    for (int64_t i = first; i < min64(last, end - kGradPrefetchDistance); ++i) {
      grads.prefetch(first_position(i + kGradPrefetchDistance));
    }
    for (int64_t i = first; i < min64(last, end - kBagPrefetchDistance); ++i) {
      grads.prefetch_bag(first_position(i + kBagPrefetchDistance));
    }
  }

  template <class Rows>
  void sum_gradients(const Rows& grads, int64_t first) const {
    const int64_t* const starts = update_.unique.starts + first;
    for (int64_t j = 0; j < work_.n; ++j) {
      if (starts[j + 1] - starts[j] > kBlock) {
        hot_.total(update_, first + j, work_.grad(j));
      } else {
        sum_block(update_, grads, starts[j], starts[j + 1], work_.grad(j));
      }
    }
  }

  // Calls in_slot(j, slot) or in_table(j, row) for each row in work.
  template <class InSlot, class InTable>
  void each_row(InSlot in_slot, InTable in_table) const {
    for (int64_t j = 0; j < work_.n; ++j) {
      if (work_.slots[j] >= 0) {
        in_slot(j, work_.slots[j]);
      } else {
        in_table(j, work_.rows[j]);
      }
    }
  }

  // What each_row calls to decode rows of an array.
  template <class Format>
  auto decoding(const uint8_t* rows, int64_t row_stride, float* out) const {
    const int64_t dim = work_.dim, stride = work_.stride;
    return [=](int64_t j, int64_t row) {
      decode_row<Format>(rows + row * row_stride, dim, out + j * stride);
    };
  }

  void load_rows() const {
    with_format(table_.precision, [&](auto format) {
      each_row([&](int64_t j, int64_t slot) { copy(cached_.row(slot), work_.weight(j)); },
               decoding<decltype(format)>(table_.rows, table_.row_stride, work_.weights));
    });
  }

  void load_states() {
    for (int i = 0; i < shapes_.num_elements; ++i) {
      const mpe_state& state = table_.states[shapes_.element[i]];
      with_state_format(state.format, [&](auto format) {
        each_row(
            [&](int64_t j, int64_t slot) { copy(cached_.element(slot, i), work_.element(i, j)); },
            decoding<decltype(format)>(state.data, state.stride, work_.elements[i]));
      });
    }
    for (int i = 0; i < shapes_.num_values; ++i) {
      const mpe_state& state = table_.states[shapes_.value[i]];
      each_row([&](int64_t j, int64_t slot) { work_.values[i][j] = cached_.values(slot)[i]; },
               [&](int64_t j, int64_t row) { work_.values[i][j] = load_value(state, row); });
    }
  }

  // Writes the rows back to where they came from, but not those that cannot be stored.
  void store(int64_t first) const {
    for (int64_t j = 0; j < work_.n; ++j) {
      const int64_t slot = work_.slots[j];
      if (!work_.storable[j]) {
        report_.add(table_, update_.unique.rows[first + j]);
        continue;
      }
      if (sample_.has(work_.rows[j])) measure(j, slot);
      if (slot >= 0) {
        store_in_slot(j, slot);
      } else {
        const float* elements[MPE_MAX_STATES];
        float values[MPE_MAX_STATES];
        for (int i = 0; i < shapes_.num_elements; ++i) elements[i] = work_.element(i, j);
        for (int i = 0; i < shapes_.num_values; ++i) values[i] = work_.values[i][j];
        encoder_.add(table_, work_.rows[j], work_.weight(j), elements, values);
      }
    }
    encoder_.flush();
  }
  // The row's gradient is spent: the old row takes its place.
  void measure(int64_t j, int64_t slot) const {
    float* old = work_.grad(j);
    if (slot >= 0) {
      copy(cached_.row(slot), old);
    } else {
      decode(table_.precision, table_.rows + work_.rows[j] * table_.row_stride, work_.dim, old);
    }
    sample_.add_update(work_.weight(j), old, slot < 0);
  }
  void store_in_slot(int64_t j, int64_t slot) const {
    before_write(*update_.group.cache, slot);
    copy(work_.weight(j), cached_.row(slot));
    for (int i = 0; i < shapes_.num_elements; ++i) {
      copy(work_.element(i, j), cached_.element(slot, i));
    }
    for (int i = 0; i < shapes_.num_values; ++i) cached_.values(slot)[i] = work_.values[i][j];
    update_.group.cache->tags[slot] |= kTagDirty;
  }

  void copy(const float* from, float* to) const { copy_floats(from, to, work_.dim); }

  const Update& update_;
  const StateShapes& shapes_;
  const HotRows& hot_;
  const int32_t t_;
  const mpe_table& table_;
  const StepSettings settings_;
  const RecordSpans spans_;
  const Slots cached_;
  RowsInWork& work_;
  RecordEncoder& encoder_;
  const NoiseSample sample_;
  const NonfiniteReport& report_;
};

// Unique rows [begin, end), a table at a time.
void update_range(const Update& update, const StateShapes& shapes, const HotRows& hot,
                  int64_t begin, int64_t end, Task& task, const NonfiniteReport& report) {
  const uint64_t* rows = update.unique.rows;
  while (begin < end) {
    const int32_t t = find_table(update.group, rows[begin]);
    const mpe_table& table = update.group.tables[t];
    const int64_t last =
        begin + first_at_least(end - begin, table.base + table.num_rows,
                               [&](int64_t i) { return static_cast<int64_t>(rows[begin + i]); });
    TableUpdate(update, shapes, hot, t, task, report).run(begin, last);
    begin = last;
  }
}

}  // namespace

mpe_status begin_update(uint64_t* step, const mpe_parameters* tables, int64_t n, uint64_t* updates,
                        float* coefficients, void*) {
  if (step != nullptr) ++*step;
  ++*updates;
  cpu::parallel(1, [=](int64_t) {  // for the floating-point environment of tasks
    for (int64_t t = 0; t < n; ++t) {
      const mpe_parameters& table = tables[t];
      float* to = coefficients + t * MPE_MAX_COEFFICIENTS;
      if (table.optimizer < 0) continue;
      if (const mpe_own_optimizer* own = own_optimizer(table.optimizer)) {
        own->coefficients(table.values, table.decay_mode, *updates, to);
        continue;
      }
      with_optimizer(table.optimizer, [&](auto kind) {
        decltype(kind)::coefficients(table.values, table.decay_mode, *updates, to);
      });
    }
  });
  return MPE_OK;
}

// Rows are cut into tasks by their lookups: a task ends with the row in which its lookups end.
mpe_status update(const mpe_group* group, const mpe_gradient* gradients, int32_t num_gradients,
                  const mpe_unique* unique, const int32_t* slots, int32_t* fresh, const mpe_found*,
                  mpe_error* nonfinite, void*) {
  if (check_state_formats(*group) != MPE_OK) return MPE_ERR_VALUE;
  const int64_t count = unique_count(*unique);
  if (count == 0) return MPE_OK;
  const Update update{*group,  gradients, num_gradients,
                      *unique, count,     fresh != nullptr ? fresh : slots};
  const StateShapes shapes = state_shapes(*group);
  const int64_t n = unique->starts[count];
  const int64_t tasks = task_count(n, kTaskLookups);
  HotRows hot(update);
  const EncoderWorkspace workspace(tasks, group->dim, false);
  const int64_t size = RowsInWork::floats_of(shapes, group->dim, workspace.stride());
  Workspace<float> floats(tasks * size);
  if (!hot.ok() || !floats.ok() || !workspace.ok()) return MPE_ERR_MEMORY;
  if (fresh != nullptr) {
    cache_refresh(group, unique, n, slots, fresh, nullptr);
    cache_release(group->cache, unique, n, slots, nullptr);
  }
  hot.compute(update);
  const auto row_at = [=](int64_t lookup) {
    return first_at_least(count, lookup, [=](int64_t i) { return unique->starts[i]; });
  };
  parallel_range(n, tasks, [&](int64_t task_number, int64_t begin, int64_t end) {
    float* memory = floats.get() + task_number * size;
    memset(memory, 0, static_cast<size_t>(size) * sizeof(float));
    Task task{RowsInWork(memory, group->dim, workspace.stride()),
              RecordEncoder(*group, shapes, workspace, task_number)};
    update_range(update, shapes, hot, row_at(begin), row_at(end), task, NonfiniteReport{nonfinite});
  });
  return MPE_OK;
}

MPE_END
