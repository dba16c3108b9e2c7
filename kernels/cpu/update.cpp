// The fused backward: a row's gradient summed in the contract's order, then one optimizer step.
#include "cpu/encode.h"
#include "cpu/gradient.h"
#include "cpu/kernels.h"

MPE_BEGIN
namespace {

constexpr int64_t kGrain = 2048;
constexpr int64_t kAhead = 12;  // unique rows between a row's prefetch and its use

// One task's memory: a row's weight, gradient and state, and what is on its way to the tables.
struct Scratch {
  float *w, *g;
  RowEncoder rows, states;
};

inline uint8_t* element_state(const mpe_table& table, int64_t row, int64_t dim) {
  return static_cast<uint8_t*>(table.state) + row * mpe_row_bytes(table.state_format, dim);
}

// Element-wise state in its stored format: load, check, store.
void load_state(const mpe_table& table, int64_t row, int64_t dim, float* h) {
  const uint8_t* stored = element_state(table, row, dim);
  with_format(table.state_format,
              [&](auto f) { decode_row<typename decltype(f)::type>(stored, dim, h); });
}

bool state_storable(const mpe_table& table, int64_t dim, const float* h) {
  return with_format(table.state_format, [&](auto f) {
    return count_beyond(h, dim, decltype(f)::type::kMaxAbsBits) == 0;
  });
}

// One optimizer step of one row, whose gradient lies in s.g. False: non-finite, nothing changed.
template <class F, class O>
bool update_row(const Update& k, const mpe_table& table, int64_t row, int64_t slot, Scratch& s) {
  const int64_t dim = k.g.dim;
  uint8_t* stored = table.rows + row * F::row_bytes(dim);
  float* cached = slot >= 0 ? cache_row(k.g, slot) : nullptr;
  float* w = cached != nullptr || F::kExact ? s.w : s.rows.next(table.precision);
  float* h = O::kState == kStateElement ? s.states.next(table.state_format) : nullptr;
  if (cached != nullptr) {
    memcpy(w, cached, static_cast<size_t>(dim) * sizeof(float));
  } else {
    decode_row<F>(stored, dim, w);
  }
  float row_state = 0.0f;
  if (O::kState == kStateRow) row_state = static_cast<const float*>(table.state)[row];
  if (O::kState == kStateElement) load_state(table, row, dim, h);

  const OptimizerSettings o{k.o.lr, k.o.eps, k.o.weight_decay, k.o.decay_mode};
  apply_decay(o, w, s.g, dim);
  O::step(o, w, s.g, O::kState == kStateRow ? &row_state : h, dim);

  if (count_beyond(w, dim, F::kMaxAbsBits) != 0) return false;
  if (O::kState == kStateRow && count_beyond(&row_state, 1, Fp32::kMaxAbsBits) != 0) return false;
  if (O::kState == kStateElement && !state_storable(table, dim, h)) return false;

  if (cached != nullptr) {
    memcpy(cached, w, static_cast<size_t>(dim) * sizeof(float));
    k.g.cache->tags[slot] |= kTagDirty;
  } else if (F::kExact) {
    F::encode(w, dim, stored, nullptr);
  } else {
    s.rows.add(table.precision, table.table_id, row, w, stored);
  }
  if (O::kState == kStateRow) static_cast<float*>(table.state)[row] = row_state;
  if (O::kState == kStateElement) {
    s.states.add(table.state_format, table.table_id, row, h, element_state(table, row, dim));
  }
  return true;
}

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

template <class F, class O>
inline void prefetch_row(const Update& k, const mpe_table& table, int64_t unique) {
  const int64_t row = static_cast<int64_t>(k.u.rows[unique]) - table.base, slot = k.slot(unique);
  if (slot >= 0) {
    prefetch_bytes(cache_row(k.g, slot), k.g.dim * 4, true);
  } else {
    const int64_t bytes = F::row_bytes(k.g.dim);
    prefetch_bytes(table.rows + row * bytes, bytes, true);
  }
  if (O::kState == kStateRow) {
    __builtin_prefetch(static_cast<const float*>(table.state) + row, 1, 3);
  } else if (O::kState == kStateElement) {
    const int64_t bytes = mpe_row_bytes(table.state_format, k.g.dim);
    prefetch_bytes(static_cast<const uint8_t*>(table.state) + row * bytes, bytes, true);
  }
}

// The gradient of a row's first occurrence: the input order scatters them.
inline void prefetch_grad(const Update& k, const GradRows& grads, int64_t unique) {
  prefetch_bytes(grads.row(k.u.positions[k.u.starts[unique]]), k.g.dim * 4, false);
}

// Unique rows [begin, end), all of one table.
template <class F, class O>
void update_rows(const Update& k, const HotRows& hot, int32_t t, int64_t begin, int64_t end,
                 Scratch& s, const Nonfinite& report) {
  const mpe_table& table = k.g.tables[t];
  const GradRows grads(k, t);
  for (int64_t i = begin; i < min64(begin + kAhead, end); ++i) prefetch_row<F, O>(k, table, i);
  for (int64_t i = begin; i < end; ++i) {
    if (i + kAhead < end) {
      prefetch_row<F, O>(k, table, i + kAhead);
      prefetch_grad(k, grads, i + kAhead / 2);
    }
    if (k.occurrences(i) > kBlock) {
      hot.total(k, i, s.g);
    } else {
      sum_block(k, grads, k.u.starts[i], k.u.starts[i + 1], s.g);
    }
    const int64_t row = static_cast<int64_t>(k.u.rows[i]) - table.base;
    if (!update_row<F, O>(k, table, row, k.slot(i), s)) report.add(table, k.u.rows[i]);
  }
}

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
        update_rows<typename decltype(f)::type, typename decltype(o)::type>(k, hot, t, begin, last,
                                                                            s, report);
      });
    });
    begin = last;
  }
}

}  // namespace

mpe_status update(const mpe_group* g, const mpe_optimizer* o, const mpe_lookups* l,
                  const mpe_unique* u, const int32_t* slots, const mpe_outputs* grad,
                  mpe_error* nonfinite, void*) {
  const int64_t count = unique_count(*u);
  if (count == 0) return MPE_OK;
  const Update k{*g, *o, *l, *u, count, slots, *grad};
  const int64_t n = u->starts[count];
  const int64_t tasks = task_count(n, kGrain);
  HotRows hot(k);
  const bool has_state = with_optimizer(
      o->kind, [](auto kind) { return decltype(kind)::type::kState == kStateElement; });
  const EncoderSpace rows(tasks, g->dim, true), states(has_state ? tasks : 0, g->dim, true);
  const int64_t room = rows.row();
  Buffer<float> floats(tasks * 2 * room);
  if (!hot.ok() || !floats.ok() || !rows.ok() || !states.ok()) return MPE_ERR_MEMORY;
  hot.compute(k);
  const auto border = [&](int64_t t) {
    return first_at_least(count, task_begin(n, tasks, t), [&](int64_t i) { return u->starts[i]; });
  };
  mpe::parallel(tasks, [&](int64_t t) {
    float* f = floats.get() + t * 2 * room;
    Scratch s{
        f, f + room, {*g, kDomainRow, rows, t}, {*g, kDomainState, states, has_state ? t : 0}};
    update_range(k, hot, border(t), border(t + 1), s, Nonfinite{nonfinite});
  });
  return MPE_OK;
}

MPE_END
