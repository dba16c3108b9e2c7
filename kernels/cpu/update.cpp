// The fused backward: a row's gradient summed in the contract's order, then one optimizer step.
#include "cpu/common.h"
#include "cpu/kernels.h"

MPE_BEGIN
namespace {

constexpr int64_t kBlock = 64;  // occurrences a partial sum; part of the definition
constexpr int64_t kGrain = 2048;
constexpr int64_t kAhead = 8;  // unique rows between a row's prefetch and its use

struct Update {
  const mpe_group& g;
  const mpe_optimizer& o;
  const mpe_lookups& l;
  const mpe_unique& u;
  int64_t unique;
  const int32_t* slots;
  const mpe_outputs& grad;

  int64_t occurrences(int64_t row) const { return u.starts[row + 1] - u.starts[row]; }
  int64_t slot(int64_t row) const { return slots == nullptr ? -1 : slots[row]; }
};

// Where the gradients of a table's lookups lie.
class GradRows {
 public:
  GradRows(const Update& k, int32_t t)
      : k_(k),
        grad_(matrix_of(k.g, k.grad, t)),
        first_bag_(t * k.l.batch_size),
        first_(k.l.bag_offsets[first_bag_]),
        pooling_(k.g.tables[t].pooling) {}

  const float* row(int64_t p) const {
    const int64_t line = pooling_ == MPE_pooling_none ? p - first_ : k_.l.bags[p] - first_bag_;
    return grad_.data + line * grad_.stride;
  }
  float coefficient(int64_t p) const {
    const float w = k_.l.weights != nullptr ? k_.l.weights[p] : 1.0f;
    if (pooling_ != MPE_pooling_mean) return w;
    const int64_t bag = k_.l.bags[p];
    return w / static_cast<float>(k_.l.bag_offsets[bag + 1] - k_.l.bag_offsets[bag]);
  }

 private:
  const Update& k_;
  mpe_matrix grad_;
  int64_t first_bag_, first_;
  int32_t pooling_;
};

inline void add_scaled(float c, const float* __restrict x, int64_t dim, float* __restrict acc) {
  for (int64_t i = 0; i < dim; ++i) acc[i] = fmaf(c, x[i], acc[i]);
}

// Partial sum of the lookups at sorted places [begin, end), of which there is at least one.
void sum_block(const Update& k, const GradRows& rows, int64_t begin, int64_t end,
               float* __restrict acc) {
  const int64_t first = k.u.positions[begin];
  const float c = rows.coefficient(first);
  const float* __restrict x = rows.row(first);
  for (int64_t i = 0; i < k.g.dim; ++i) acc[i] = fmaf(c, x[i], 0.0f);
  for (int64_t i = begin + 1; i < end; ++i) {
    const int64_t p = k.u.positions[i];
    add_scaled(rows.coefficient(p), rows.row(p), k.g.dim, acc);
  }
}

// Partial sums of the rows with more than one block, computed by all threads first, so that one
// very hot row does not leave the others idle.
class HotRows {
 public:
  explicit HotRows(const Update& k) : rows_(count_rows(k)), sums_(blocks_ * k.g.dim) {
    int64_t n = 0, block = 0;
    if (!ok()) return;
    for (int64_t row = 0; num_rows_ > 0 && row < k.unique; ++row) {
      if (k.occurrences(row) <= kBlock) continue;
      rows_[n++] = Hot{row, block};
      block += ceil_div(k.occurrences(row), kBlock);
    }
  }
  bool ok() const { return rows_.ok() && sums_.ok(); }

  void compute(const Update& k) {
    mpe::parallel(blocks_, [&](int64_t block) {
      const Hot& hot = rows_[find(block, [&](int64_t i) { return rows_[i].block; })];
      const GradRows grads(k, find_table(k.g, k.u.rows[hot.row]));
      const int64_t begin = k.u.starts[hot.row] + (block - hot.block) * kBlock;
      const int64_t end = min64(begin + kBlock, k.u.starts[hot.row + 1]);
      sum_block(k, grads, begin, end, sums_.get() + block * k.g.dim);
    });
  }

  void total(const Update& k, int64_t row, float* acc) const {
    const int64_t dim = k.g.dim;
    const Hot& hot = rows_[find(row, [&](int64_t i) { return rows_[i].row; })];
    const float* sum = sums_.get() + hot.block * dim;
    memcpy(acc, sum, static_cast<size_t>(dim) * sizeof(float));
    for (int64_t b = 1; b < ceil_div(k.occurrences(row), kBlock); ++b) {
      sum += dim;
      for (int64_t c = 0; c < dim; ++c) acc[c] += sum[c];
    }
  }

 private:
  struct Hot {
    int64_t row, block;
  };

  // The last hot row whose measure is at most x.
  template <class Measure>
  int64_t find(int64_t x, Measure measure) const {
    return first_at_least(num_rows_, x + 1, measure) - 1;
  }
  int64_t count_rows(const Update& k) {
    for (int64_t row = 0; row < k.unique; ++row) {
      if (k.occurrences(row) <= kBlock) continue;
      ++num_rows_;
      blocks_ += ceil_div(k.occurrences(row), kBlock);
    }
    return num_rows_;
  }

  int64_t num_rows_ = 0, blocks_ = 0;
  Buffer<Hot> rows_;
  Buffer<float> sums_;
};

// One task's scratch: weight, gradient and state of a row, and its draws.
struct Scratch {
  float *w, *g, *h;
  uint16_t* draws;
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

void store_state(const mpe_group& g, const mpe_table& table, int64_t row, const float* h,
                 uint16_t* draws) {
  uint8_t* stored = element_state(table, row, g.dim);
  with_format(table.state_format, [&](auto f) {
    encode_row<typename decltype(f)::type>(g, table.table_id, row, kDomainState, h, stored, draws);
  });
}

// One optimizer step of one row, whose gradient lies in s.g. False: non-finite, nothing changed.
template <class F, class O>
bool update_row(const Update& k, const mpe_table& table, int64_t row, int64_t slot,
                const Scratch& s) {
  const int64_t dim = k.g.dim;
  uint8_t* stored = table.rows + row * F::row_bytes(dim);
  float* cached = slot >= 0 ? cache_row(k.g, slot) : nullptr;
  if (cached != nullptr) {
    memcpy(s.w, cached, static_cast<size_t>(dim) * sizeof(float));
  } else {
    decode_row<F>(stored, dim, s.w);
  }
  float row_state = 0.0f;
  if (O::kState == kStateRow) row_state = static_cast<const float*>(table.state)[row];
  if (O::kState == kStateElement) load_state(table, row, dim, s.h);

  const OptimizerSettings o{k.o.lr, k.o.eps, k.o.weight_decay, k.o.decay_mode};
  apply_decay(o, s.w, s.g, dim);
  O::step(o, s.w, s.g, O::kState == kStateRow ? &row_state : s.h, dim);

  if (count_beyond(s.w, dim, F::kMaxAbsBits) != 0) return false;
  if (O::kState == kStateRow && count_beyond(&row_state, 1, Fp32::kMaxAbsBits) != 0) return false;
  if (O::kState == kStateElement && !state_storable(table, dim, s.h)) return false;

  if (cached != nullptr) {
    memcpy(cached, s.w, static_cast<size_t>(dim) * sizeof(float));
    k.g.cache->tags[slot] |= kTagDirty;
  } else {
    encode_row<F>(k.g, table.table_id, row, kDomainRow, s.w, stored, s.draws);
  }
  if (O::kState == kStateRow) static_cast<float*>(table.state)[row] = row_state;
  if (O::kState == kStateElement) store_state(k.g, table, row, s.h, s.draws);
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
                 const Scratch& s, const Nonfinite& report) {
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

void update_range(const Update& k, const HotRows& hot, int64_t begin, int64_t end, const Scratch& s,
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
  const int64_t room = ceil_div(g->dim, 64) * 64;
  HotRows hot(k);
  Buffer<float> floats(tasks * 3 * room);
  Buffer<uint16_t> draws(tasks * room);
  if (!hot.ok() || !floats.ok() || !draws.ok()) return MPE_ERR_MEMORY;
  hot.compute(k);
  const auto border = [&](int64_t t) {
    return first_at_least(count, task_begin(n, tasks, t), [&](int64_t i) { return u->starts[i]; });
  };
  mpe::parallel(tasks, [&](int64_t t) {
    float* f = floats.get() + t * 3 * room;
    const Scratch s{f, f + room, f + 2 * room, draws.get() + t * room};
    update_range(k, hot, border(t), border(t + 1), s, Nonfinite{nonfinite});
  });
  return MPE_OK;
}

MPE_END
