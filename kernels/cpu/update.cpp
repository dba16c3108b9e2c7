// The fused backward: a row's gradient summed in the contract's order, then one optimizer step.
#include "cpu/encode.h"
#include "cpu/gradient.h"
#include "cpu/kernels.h"
#include "state_formats.h"

MPE_BEGIN
namespace {

constexpr int64_t kGrain = 2048;
constexpr int64_t kAhead = 20;  // unique rows between a row's prefetch and its use

// One task's memory: weights, gradients and states of the rows in work, and what is on its way to
// the tables. Rows are padded to whole vectors.
struct Scratch {
  float *w, *g, *h;
  int64_t width;
  RowEncoder rows, states;
};

// Where the non-finite rows of an update are reported.
struct Nonfinite {
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

// Unique rows of one table, several at a time, so that the chain of one row's steps hides behind
// another's.
template <class F, class O>
class TableUpdate {
 public:
  TableUpdate(const Update& k, const HotRows& hot, int32_t t, Scratch& s, const Nonfinite& report)
      : k_(k),
        hot_(hot),
        table_(k.g.tables[t]),
        grads_(k, t),
        o_{k.o.lr, k.o.eps, k.o.weight_decay, k.o.decay_mode},
        state_bound_(with_format(table_.state_format,
                                 [](auto f) { return decltype(f)::kMaxAbsBits; })),
        s_(s),
        report_(report) {}

  void run(int64_t begin, int64_t end) {
    const int64_t room = encoder_room(k_.g.dim);
    for (int64_t i = begin; i < min64(begin + kAhead, end); ++i) prefetch(i);
    for (int64_t first = begin; first < end; first += room) {
      const int64_t n = min64(room, end - first);
      for (int64_t j = 0; j < n; ++j) {
        if (first + j + kAhead < end) {
          prefetch(first + j + kAhead);
          prefetch_grad(first + j + kAhead / 4);
        }
        load(first + j, j);
      }
      if (O::kState == kStateRow) scale_steps(n);
      for (int64_t j = 0; j < n; ++j) {
        if (!finish(j)) report_.add(table_, k_.u.rows[first + j]);
      }
      s_.rows.flush();
      s_.states.flush();
    }
  }

 private:
  float* w(int64_t j) const { return s_.w + j * s_.width; }
  float* g(int64_t j) const { return s_.g + j * s_.width; }
  float* h(int64_t j) const { return s_.h + j * s_.width; }

  uint8_t* element_state(int64_t row) const {
    return static_cast<uint8_t*>(table_.state) + row * mpe_row_bytes(table_.state_format, k_.g.dim);
  }

  void prefetch(int64_t unique) const {
    const int64_t row = static_cast<int64_t>(k_.u.rows[unique]) - table_.base;
    const int64_t slot = k_.slot(unique);
    if (slot >= 0) {
      prefetch_bytes(cache_row(k_.g, slot), k_.g.dim * 4, true);
      __builtin_prefetch(k_.g.cache->tags + slot, 1, 3);
    } else {
      const int64_t bytes = F::row_bytes(k_.g.dim);
      prefetch_bytes(table_.rows + row * bytes, bytes, true);
    }
    if (O::kState == kStateRow) {
      __builtin_prefetch(static_cast<const float*>(table_.state) + row, 1, 3);
    } else if (O::kState == kStateElement) {
      const int64_t bytes = mpe_row_bytes(table_.state_format, k_.g.dim);
      prefetch_bytes(element_state(row), bytes, true);
    }
  }

  // The gradient of a row's first occurrence: the input order scatters them.
  void prefetch_grad(int64_t unique) const {
    prefetch_bytes(grads_.row(k_.u.positions[k_.u.starts[unique]]), k_.g.dim * 4, false);
  }

  // Row j of those in work: its gradient, its weight and its state.
  void load(int64_t unique, int64_t j) {
    const int64_t dim = k_.g.dim;
    row_[j] = static_cast<int64_t>(k_.u.rows[unique]) - table_.base;
    const int64_t slot = slot_[j] = k_.slot(unique);
    if (k_.occurrences(unique) > kBlock) {
      hot_.total(k_, unique, g(j));
    } else {
      sum_block(k_, grads_, k_.u.starts[unique], k_.u.starts[unique + 1], g(j));
    }
    if (slot >= 0) {
      memcpy(w(j), cache_row(k_.g, slot), static_cast<size_t>(dim) * sizeof(float));
    } else {
      decode_row<F>(table_.rows + row_[j] * F::row_bytes(dim), dim, w(j));
    }
    if (o_.decay_mode != kDecayNone) apply_decay(o_, w(j), g(j), dim);
    if (O::kState == kStateRow) {
      squares_[j] = square_sum(g(j), s_.width);
      state_[j] = static_cast<const float*>(table_.state)[row_[j]];
    } else if (O::kState == kStateElement) {
      with_format(table_.state_format, [&](auto f) {
        decode_row<decltype(f)>(element_state(row_[j]), dim, h(j));
      });
    }
  }

  void scale_steps(int64_t n) {
    if constexpr (O::kState == kStateRow) {
      for (int64_t j = 0; j < n; j += kLanes) {
        Floats state = Floats::load(state_ + j);
        O::scale(o_, Floats::load(squares_ + j), &state, k_.g.dim).store(steps_ + j);
        state.store(state_ + j);
      }
    }
  }

  // New weights and state of row j. False: not storable.
  bool step(int64_t j) {
    const int64_t dim = k_.g.dim;
    Ints bad(0);
    for (int64_t c = 0; c < dim; c += kLanes) {
      Floats weight = Floats::load(w(j) + c), state;
      const Floats grad = Floats::load(g(j) + c);
      Ints wrong(0);
      if constexpr (O::kState == kStateRow) {
        O::apply(Floats(steps_[j]), weight, grad);
      } else {
        if (O::kState == kStateElement) state = Floats::load(h(j) + c);
        O::apply(o_, weight, grad, state);
        if (O::kState == kStateElement) {
          state.store(h(j) + c);
          wrong = wrong | beyond(state, state_bound_);
        }
      }
      weight.store(w(j) + c);
      wrong = wrong | beyond(weight, F::kMaxAbsBits);
      bad = bad | (c + kLanes <= dim ? wrong : wrong & first_lanes(dim - c));
    }
    return !any(bad);
  }

  static Ints beyond(Floats x, uint32_t bound) {
    return (int_bits(x) & 0x7FFFFFFF) > static_cast<int32_t>(bound);
  }

  // Steps and stores row j. False: non-finite, nothing changed.
  bool finish(int64_t j) {
    const int64_t dim = k_.g.dim, row = row_[j], slot = slot_[j];
    if (!step(j)) return false;
    if (O::kState == kStateRow && count_beyond(state_ + j, 1, Fp32::kMaxAbsBits) != 0) return false;
    uint8_t* stored = table_.rows + row * F::row_bytes(dim);
    if (slot >= 0) {
      memcpy(cache_row(k_.g, slot), w(j), static_cast<size_t>(dim) * sizeof(float));
      k_.g.cache->tags[slot] |= kTagDirty;
    } else if (F::kExact) {
      F::encode(w(j), dim, stored, nullptr);
    } else {
      s_.rows.add(table_.precision, table_.table_id, row, w(j), stored);
    }
    if (O::kState == kStateRow) static_cast<float*>(table_.state)[row] = state_[j];
    if (O::kState == kStateElement) {
      s_.states.add(table_.state_format, table_.table_id, row, h(j), element_state(row));
    }
    return true;
  }

  const Update& k_;
  const HotRows& hot_;
  const mpe_table& table_;
  const GradRows grads_;
  const OptimizerSettings o_;
  const uint32_t state_bound_;
  Scratch& s_;
  const Nonfinite& report_;
  int64_t row_[kMaxRows], slot_[kMaxRows];
  float squares_[kMaxRows] = {}, state_[kMaxRows] = {}, steps_[kMaxRows];
};

void update_range(const Update& k, const HotRows& hot, int64_t begin, int64_t end, Scratch& s,
                  const Nonfinite& report) {
  while (begin < end) {
    const int32_t t = find_table(k.g, k.u.rows[begin]);
    const int64_t limit = k.g.tables[t].base + k.g.tables[t].num_rows;
    const int64_t last = begin + first_at_least(end - begin, limit, [&](int64_t i) {
                           return static_cast<int64_t>(k.u.rows[begin + i]);
                         });
    with_format(k.g.tables[t].precision, [&](auto f) {
      with_optimizer(k.o.kind, [&](auto o) {
        TableUpdate<decltype(f), decltype(o)>(k, hot, t, s, report)
            .run(begin, last);
      });
    });
    begin = last;
  }
}

}  // namespace

mpe_status update(const mpe_group* g, const mpe_optimizer* o, const mpe_lookups* l,
                  const mpe_unique* u, const int32_t* slots, const mpe_outputs* grad,
                  mpe_error* nonfinite, void*) {
  if (check_state_formats(*g, *o) != MPE_OK) return MPE_ERR_VALUE;
  const int64_t count = unique_count(*u);
  if (count == 0) return MPE_OK;
  const Update k{*g, *o, *l, *u, count, slots, *grad};
  const int64_t n = u->starts[count];
  const int64_t tasks = task_count(n, kGrain);
  HotRows hot(k);
  const bool has_state = with_optimizer(
      o->kind, [](auto kind) { return decltype(kind)::kState == kStateElement; });
  const EncoderSpace rows(tasks, g->dim, false), states(has_state ? tasks : 0, g->dim, false);
  const int64_t width = rows.row(), room = encoder_room(g->dim) * width;
  Buffer<float> floats(tasks * (has_state ? 3 : 2) * room);
  if (!hot.ok() || !floats.ok() || !rows.ok() || !states.ok()) return MPE_ERR_MEMORY;
  hot.compute(k);
  const auto border = [&](int64_t t) {
    return first_at_least(count, task_begin(n, tasks, t), [&](int64_t i) { return u->starts[i]; });
  };
  mpe::parallel(tasks, [&](int64_t t) {
    float* f = floats.get() + t * (has_state ? 3 : 2) * room;
    memset(f, 0, static_cast<size_t>(2 * room) * sizeof(float));
    Scratch s{f,
              f + room,
              f + 2 * room,
              width,
              {*g, kDomainRow, rows, t},
              {*g, kDomainState, states, has_state ? t : 0}};
    update_range(k, hot, border(t), border(t + 1), s, Nonfinite{nonfinite});
  });
  return MPE_OK;
}

MPE_END
