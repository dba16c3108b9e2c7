// The fused backward: a row's gradient summed in the contract's order, then one optimizer step.
#include "cpu/encode.h"
#include "cpu/gradient.h"
#include "cpu/kernels.h"
#include "state_formats.h"

MPE_BEGIN
namespace {

constexpr int64_t kTaskLookups = 2048;
// Unique rows between a row's prefetch and its use, and between its gradient's and its use.
constexpr int64_t kPrefetchDistance = 20;
constexpr int64_t kGradPrefetchDistance = kPrefetchDistance / 4;

// One task's memory: the weights, gradients and states of the rows it is working on, padded to
// whole vectors, and the encoders that take rows and states back to the tables.
struct Scratch {
  float *weights, *grads, *states;
  int64_t stride;
  RowEncoder row_encoder, state_encoder;
};

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

// Unique rows of one table, several at a time, so that the chain of steps of one row hides behind
// another's. `unique` is a row's number among the unique rows, `j` among those in work.
template <class Format, class Optimizer>
class TableUpdate {
 public:
  TableUpdate(const Update& update, const HotRows& hot, int32_t t, Scratch& scratch,
              const NonfiniteReport& report)
      : update_(update),
        hot_(hot),
        table_(update.group.tables[t]),
        grads_(update, t),
        settings_{update.optimizer.lr, update.optimizer.eps, update.optimizer.weight_decay,
                  update.optimizer.decay_mode},
        state_bound_(with_format(table_.state_format,
                                 [](auto format) { return decltype(format)::kMaxAbsBits; })),
        scratch_(scratch),
        report_(report) {}

  void run(int64_t begin, int64_t end) {
    const int64_t capacity = encoder_capacity(update_.group.dim);
    for (int64_t i = begin; i < min64(begin + kPrefetchDistance, end); ++i) prefetch(i);
    for (int64_t first = begin; first < end; first += capacity) {
      const int64_t n = min64(capacity, end - first);
      for (int64_t j = 0; j < n; ++j) {
        if (first + j + kPrefetchDistance < end) {
          prefetch(first + j + kPrefetchDistance);
          prefetch_grad(first + j + kGradPrefetchDistance);
        }
        load(first + j, j);
      }
      if (Optimizer::kState == kStateRow) scale_steps(n);
      for (int64_t j = 0; j < n; ++j) {
        if (!finish(j)) report_.add(table_, update_.unique.rows[first + j]);
      }
      scratch_.row_encoder.flush();
      scratch_.state_encoder.flush();
    }
  }

 private:
  float* weights(int64_t j) const { return scratch_.weights + j * scratch_.stride; }
  float* grad(int64_t j) const { return scratch_.grads + j * scratch_.stride; }
  float* state(int64_t j) const { return scratch_.states + j * scratch_.stride; }

  uint8_t* stored_row(int64_t row) const {
    return table_.rows + row * Format::row_bytes(update_.group.dim);
  }
  float* row_state(int64_t row) const { return static_cast<float*>(table_.state) + row; }
  uint8_t* element_state(int64_t row) const {
    return static_cast<uint8_t*>(table_.state) +
           row * mpe_row_bytes(table_.state_format, update_.group.dim);
  }

  void prefetch(int64_t unique) const {
    const int64_t row = static_cast<int64_t>(update_.unique.rows[unique]) - table_.base;
    const int64_t slot = update_.slot(unique);
    if (slot >= 0) {
      prefetch_bytes(cache_row(update_.group, slot), update_.group.dim * 4, true);
      __builtin_prefetch(update_.group.cache->tags + slot, 1, 3);
    } else {
      prefetch_bytes(stored_row(row), Format::row_bytes(update_.group.dim), true);
    }
    if (Optimizer::kState == kStateRow) {
      __builtin_prefetch(row_state(row), 1, 3);
    } else if (Optimizer::kState == kStateElement) {
      const int64_t bytes = mpe_row_bytes(table_.state_format, update_.group.dim);
      prefetch_bytes(element_state(row), bytes, true);
    }
  }

  // The gradient of a row's first occurrence: the input order scatters them.
  void prefetch_grad(int64_t unique) const {
    const int64_t first = update_.unique.positions[update_.unique.starts[unique]];
    prefetch_bytes(grads_.row(first), update_.group.dim * 4, false);
  }

  // Row j of those in work: its gradient, its weights and its state.
  void load(int64_t unique, int64_t j) {
    const int64_t dim = update_.group.dim;
    rows_[j] = static_cast<int64_t>(update_.unique.rows[unique]) - table_.base;
    const int64_t slot = slots_[j] = update_.slot(unique);
    if (update_.occurrences(unique) > kBlock) {
      hot_.total(update_, unique, grad(j));
    } else {
      sum_block(update_, grads_, update_.unique.starts[unique], update_.unique.starts[unique + 1],
                grad(j));
    }
    if (slot >= 0) {
      memcpy(weights(j), cache_row(update_.group, slot), static_cast<size_t>(dim) * sizeof(float));
    } else {
      decode_row<Format>(stored_row(rows_[j]), dim, weights(j));
    }
    if (settings_.decay_mode != kDecayNone) apply_decay(settings_, weights(j), grad(j), dim);
    if (Optimizer::kState == kStateRow) {
      squares_[j] = square_sum(grad(j), scratch_.stride);
      row_states_[j] = *row_state(rows_[j]);
    } else if (Optimizer::kState == kStateElement) {
      with_format(table_.state_format, [&](auto format) {
        decode_row<decltype(format)>(element_state(rows_[j]), dim, state(j));
      });
    }
  }

  // The step sizes of n rows, and their states.
  void scale_steps(int64_t n) {
    if constexpr (Optimizer::kState == kStateRow) {
      for (int64_t j = 0; j < n; j += kLanes) {
        Floats states = Floats::load(row_states_ + j);
        const Floats squares = Floats::load(squares_ + j);
        Optimizer::scale(settings_, squares, &states, update_.group.dim).store(steps_ + j);
        states.store(row_states_ + j);
      }
    }
  }

  // New weights and state of row j. False: they cannot be stored.
  bool step(int64_t j) {
    const int64_t dim = update_.group.dim;
    Ints bad(0);
    for (int64_t c = 0; c < dim; c += kLanes) {
      Floats weight = Floats::load(weights(j) + c), element;
      const Floats gradient = Floats::load(grad(j) + c);
      Ints wrong(0);
      if constexpr (Optimizer::kState == kStateRow) {
        Optimizer::apply(Floats(steps_[j]), weight, gradient);
      } else {
        if (Optimizer::kState == kStateElement) element = Floats::load(state(j) + c);
        Optimizer::apply(settings_, weight, gradient, element);
        if (Optimizer::kState == kStateElement) {
          element.store(state(j) + c);
          wrong = wrong | beyond(element, state_bound_);
        }
      }
      weight.store(weights(j) + c);
      wrong = wrong | beyond(weight, Format::kMaxAbsBits);
      bad = bad | (c + kLanes <= dim ? wrong : wrong & first_lanes(dim - c));
    }
    return !any(bad);
  }

  static Ints beyond(Floats x, uint32_t bound) {
    return (int_bits(x) & 0x7FFFFFFF) > static_cast<int32_t>(bound);
  }

  // Steps and stores row j. False: it is not finite, and nothing was changed.
  bool finish(int64_t j) {
    const int64_t dim = update_.group.dim, row = rows_[j], slot = slots_[j];
    if (!step(j)) return false;
    if (Optimizer::kState == kStateRow &&
        count_beyond(row_states_ + j, 1, Fp32::kMaxAbsBits) != 0) {
      return false;
    }
    if (slot >= 0) {
      memcpy(cache_row(update_.group, slot), weights(j), static_cast<size_t>(dim) * sizeof(float));
      update_.group.cache->tags[slot] |= kTagDirty;
    } else if (Format::kExact) {
      Format::encode(weights(j), dim, stored_row(row), nullptr);
    } else {
      scratch_.row_encoder.add(table_.precision, table_.table_id, row, weights(j), stored_row(row));
    }
    if (Optimizer::kState == kStateRow) *row_state(row) = row_states_[j];
    if (Optimizer::kState == kStateElement) {
      scratch_.state_encoder.add(table_.state_format, table_.table_id, row, state(j),
                                 element_state(row));
    }
    return true;
  }

  const Update& update_;
  const HotRows& hot_;
  const mpe_table& table_;
  const GradRows grads_;
  const OptimizerSettings settings_;
  const uint32_t state_bound_;
  Scratch& scratch_;
  const NonfiniteReport& report_;
  // Of the rows in work: number in the table, slot, and with a state a row its three values.
  int64_t rows_[kMaxRows], slots_[kMaxRows];
  float squares_[kMaxRows] = {}, row_states_[kMaxRows] = {}, steps_[kMaxRows];
};

// Unique rows [begin, end), a table at a time.
void update_range(const Update& update, const HotRows& hot, int64_t begin, int64_t end,
                  Scratch& scratch, const NonfiniteReport& report) {
  const uint64_t* rows = update.unique.rows;
  while (begin < end) {
    const int32_t t = find_table(update.group, rows[begin]);
    const mpe_table& table = update.group.tables[t];
    const int64_t last =
        begin + first_at_least(end - begin, table.base + table.num_rows,
                               [&](int64_t i) { return static_cast<int64_t>(rows[begin + i]); });
    with_format(table.precision, [&](auto format) {
      with_optimizer(update.optimizer.kind, [&](auto optimizer) {
        TableUpdate<decltype(format), decltype(optimizer)>(update, hot, t, scratch, report)
            .run(begin, last);
      });
    });
    begin = last;
  }
}

}  // namespace

// Rows are cut into tasks by their lookups: a task ends with the row in which its lookups end.
mpe_status update(const mpe_group* group, const mpe_optimizer* optimizer,
                  const mpe_lookups* lookups, const mpe_unique* unique, const int32_t* slots,
                  const mpe_outputs* grad, mpe_error* nonfinite, void*) {
  if (check_state_formats(*group, *optimizer) != MPE_OK) return MPE_ERR_VALUE;
  const int64_t count = unique_count(*unique);
  if (count == 0) return MPE_OK;
  const Update update{*group, *optimizer, *lookups, *unique, count, slots, *grad};
  const int64_t n = unique->starts[count];
  const int64_t tasks = task_count(n, kTaskLookups);
  HotRows hot(update);
  const bool has_states = with_optimizer(
      optimizer->kind, [](auto kind) { return decltype(kind)::kState == kStateElement; });
  const EncoderWorkspace row_workspace(tasks, group->dim, false);
  const EncoderWorkspace state_workspace(has_states ? tasks : 0, group->dim, false);
  const int64_t stride = row_workspace.stride(), size = encoder_capacity(group->dim) * stride;
  const int64_t arrays = has_states ? 3 : 2;  // weights, gradients, states
  Workspace<float> floats(tasks * arrays * size);
  if (!hot.ok() || !floats.ok() || !row_workspace.ok() || !state_workspace.ok()) {
    return MPE_ERR_MEMORY;
  }
  hot.compute(update);
  const auto row_at = [=](int64_t lookup) {
    return first_at_least(count, lookup, [=](int64_t i) { return unique->starts[i]; });
  };
  parallel_range(n, tasks, [&](int64_t task, int64_t begin, int64_t end) {
    float* weights = floats.get() + task * arrays * size;
    memset(weights, 0, static_cast<size_t>(2 * size) * sizeof(float));
    Scratch scratch{weights,
                    weights + size,
                    weights + 2 * size,
                    stride,
                    {*group, kDomainRow, row_workspace, task},
                    {*group, kDomainState, state_workspace, has_states ? task : 0}};
    update_range(update, hot, row_at(begin), row_at(end), scratch, NonfiniteReport{nonfinite});
  });
  return MPE_OK;
}

MPE_END
