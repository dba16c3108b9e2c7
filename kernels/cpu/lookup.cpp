// The pooled and unpooled forward: rows straight from low precision or from the cache.
#include "cpu/common.h"
#include "cpu/kernels.h"
#include "mpembed/reduce.h"

MPE_BEGIN
namespace {

constexpr int64_t kGrain = 4096;
constexpr int64_t kAheadBytes = 8192;  // of rows, between a row's prefetch and its use
constexpr int64_t kMaxAhead = 128;     // lookups
constexpr int64_t kAhead = 32;         // lookups whose rows meet a gradient

struct Lookup {
  const mpe_group& g;
  const mpe_lookups& l;
  const int32_t* slots;
};

// The lookups of one table. kPlain: none is cached, weighted or dropped.
template <class F, bool kPlain>
class TableLookup {
 public:
  TableLookup(const Lookup& k, const mpe_table& table)
      : k_(k),
        keys_(k.l.keys),
        rows_(table.rows),
        base_(static_cast<uint64_t>(table.base)),
        num_rows_(static_cast<uint64_t>(table.num_rows)),
        dim_(k.g.dim),
        bytes_(F::row_bytes(dim_)),
        ahead_(min64(kAheadBytes / (k.slots != nullptr ? dim_ * 4 : bytes_) + 1, kMaxAhead)) {}

  int64_t dim() const { return dim_; }

  // Calls add(row, weight) for lookups [begin, end), in order. `ahead`: with prefetches of whole
  // rows, for the first of several passes over a bag.
  template <class Add>
  void each_row(int64_t begin, int64_t end, bool ahead, Add add) const {
    for (int64_t p = begin; p < end; ++p) {
      if (ahead) prefetch(p + ahead_);
      if constexpr (kPlain) {
        add(StoredRow<F>(row(keys_[p]), dim_), 1.0f);
      } else {
        if (keys_[p] == MPE_DROPPED) continue;
        const float w = k_.l.weights != nullptr ? k_.l.weights[p] : 1.0f;
        if (cached(p)) {
          add(cached_row(k_.g, k_.slots[p]), w);
        } else {
          add(StoredRow<F>(row(keys_[p]), dim_), w);
        }
      }
    }
  }

  // Asks for the row of lookup p, which may be in a later table.
  void prefetch(int64_t p) const {
    if (p >= k_.l.n) return;
    if (!kPlain && cached(p)) {
      prefetch_bytes(cache_row(k_.g, k_.slots[p]), dim_ * 4, false);
    } else if (keys_[p] - base_ < num_rows_) {
      prefetch_bytes(row(keys_[p]), bytes_, false);
    } else {
      prefetch_elsewhere(p);
    }
  }

  bool cached(int64_t p) const { return k_.slots != nullptr && k_.slots[p] >= 0; }
  const uint8_t* row(uint64_t key) const {
    return rows_ + static_cast<int64_t>(key - base_) * bytes_;
  }

 private:
  __attribute__((noinline)) void prefetch_elsewhere(int64_t p) const {
    if (keys_[p] == MPE_DROPPED) return;
    const mpe_table& table = k_.g.tables[find_table(k_.g, keys_[p])];
    const int64_t bytes = row_bytes_of(table, dim_);
    prefetch_bytes(row_address(table, keys_[p], bytes), bytes, false);
  }

  const Lookup& k_;
  const uint64_t* const keys_;
  uint8_t* const rows_;
  const uint64_t base_, num_rows_;
  const int64_t dim_, bytes_, ahead_;
};

// Columns [c, c + kVectors * kLanes) of the sum over lookups [begin, end); kept in registers.
template <int kVectors, class Table>
inline void sum_columns(const Table& table, int64_t begin, int64_t end, int64_t c, float* acc) {
  Floats sum[kVectors];
  table.each_row(begin, end, c == 0, [&](const auto& row, float w) {
    for (int v = 0; v < kVectors; ++v) sum[v] = fused(w, row.load(c + v * kLanes), sum[v]);
  });
  for (int v = 0; v < kVectors; ++v) sum[v].store(acc + c + v * kLanes);
}

// The columns that are left when there are no more whole vectors.
template <class Table>
void sum_rest(const Table& table, int64_t begin, int64_t end, int64_t c, float* acc) {
  const int64_t n = table.dim() - c;
  Floats sum;
  table.each_row(begin, end, c == 0,
                 [&](const auto& row, float w) { sum = fused(w, row.load_some(c, n), sum); });
  for (int64_t i = 0; i < n; ++i) acc[c + i] = sum.v[i];
}

// acc = sum of w * row over lookups [begin, end), in order.
template <class Table>
inline void sum_rows(const Table& table, int64_t begin, int64_t end, float* acc) {
  const int64_t vectors = table.dim() / kLanes;
  int64_t v = 0;
  for (; v + 8 <= vectors; v += 8) sum_columns<8>(table, begin, end, v * kLanes, acc);
  for (; v + 4 <= vectors; v += 4) sum_columns<4>(table, begin, end, v * kLanes, acc);
  for (; v + 2 <= vectors; v += 2) sum_columns<2>(table, begin, end, v * kLanes, acc);
  for (; v < vectors; ++v) sum_columns<1>(table, begin, end, v * kLanes, acc);
  if (v * kLanes < table.dim()) sum_rest(table, begin, end, v * kLanes, acc);
}

// Bags [bag, end) of table t.
template <class F, bool kPlain>
void sum_bags(const Lookup& k, int64_t t, int64_t bag, int64_t end, const mpe_matrix& out) {
  const mpe_table& table = k.g.tables[t];
  const TableLookup<F, kPlain> lookups(k, table);
  const int64_t first_bag = t * k.l.batch_size, first = k.l.bag_offsets[first_bag];
  if (table.pooling == MPE_pooling_none) {
    for (int64_t p = k.l.bag_offsets[bag]; p < k.l.bag_offsets[end]; ++p) {
      sum_rows(lookups, p, p + 1, out.data + (p - first) * out.stride);
    }
    return;
  }
  for (int64_t here = k.l.bag_offsets[bag]; bag < end; ++bag) {
    const int64_t begin = here;
    here = k.l.bag_offsets[bag + 1];
    float* acc = out.data + (bag - first_bag) * out.stride;
    sum_rows(lookups, begin, here, acc);
    if (table.pooling == MPE_pooling_mean && here > begin) {
      const float n = static_cast<float>(here - begin);
      for (int64_t c = 0; c < k.g.dim; ++c) acc[c] /= n;
    }
  }
}

// Weight gradients of lookups [begin, end), all of table t; row: scratch for one row.
template <class F>
void table_weight_grad(const Lookup& k, int64_t t, int64_t begin, int64_t end,
                       const mpe_matrix& grad, float* out, float* row) {
  const mpe_table& table = k.g.tables[t];
  const int64_t dim = k.g.dim, first_bag = t * k.l.batch_size;
  const int64_t first = k.l.bag_offsets[first_bag];
  float* target = out + k.l.origins[t] - first;
  const TableLookup<F, false> lookups(k, table);
  for (int64_t p = begin; p < end; ++p) {
    lookups.prefetch(p + kAhead);
    if (k.l.keys[p] == MPE_DROPPED) {
      target[p] = 0.0f;
      continue;
    }
    const float* x = row;
    if (lookups.cached(p)) {
      x = cache_row(k.g, k.slots[p]);
    } else {
      decode_row<F>(lookups.row(k.l.keys[p]), dim, row);
    }
    const int64_t bag = k.l.bags[p];
    const int64_t line = table.pooling == MPE_pooling_none ? p - first : bag - first_bag;
    const float dot = tree_dot(grad.data + line * grad.stride, x, dim);
    const float n = static_cast<float>(k.l.bag_offsets[bag + 1] - k.l.bag_offsets[bag]);
    target[p] = table.pooling == MPE_pooling_mean ? dot / n : dot;
  }
}

// Bags [bag, end) of a part, a table at a time.
void lookup_bags(const mpe_lookup_args& part, int64_t bag, int64_t end) {
  const Lookup k{*part.group, *part.lookups, part.slots};
  while (bag < end) {
    const int64_t t = bag / k.l.batch_size;
    const mpe_table& table = k.g.tables[t];
    const mpe_matrix matrix = matrix_of(k.g, *part.outputs, t);
    const int64_t last = min64(end, (t + 1) * k.l.batch_size);
    const bool plain = k.slots == nullptr && k.l.weights == nullptr && k.l.dropped[t] == 0;
    with_format(table.precision, [&](auto f) {
      using F = decltype(f);
      (plain ? sum_bags<F, true> : sum_bags<F, false>)(k, t, bag, last, matrix);
    });
    bag = last;
  }
}

int64_t bags_of(const mpe_lookup_args& part) {
  return part.group->num_tables * part.lookups->batch_size;
}
int64_t work_of(const mpe_lookup_args& part) { return part.lookups->n + bags_of(part); }

// The bag at which so much of a part's work is done.
int64_t bag_at(const mpe_lookup_args& part, int64_t work) {
  return first_at_least(bags_of(part), work,
                        [&](int64_t b) { return part.lookups->bag_offsets[b] + b; });
}

// Work [begin, end) of all parts, one after the other.
void lookup_parts(const mpe_lookup_args* parts, int32_t n, int64_t begin, int64_t end) {
  for (int32_t i = 0; i < n && end > 0; ++i) {
    const int64_t work = work_of(parts[i]);
    if (begin < work) {
      lookup_bags(parts[i], bag_at(parts[i], begin), bag_at(parts[i], min64(end, work)));
    }
    begin = begin > work ? begin - work : 0;
    end -= work;
  }
}

}  // namespace

// The work is cut by lookups plus bags, across all groups: a group may have a few bags only.
mpe_status lookup(const mpe_lookup_args* parts, int32_t n, void*) {
  int64_t work = 0;
  for (int32_t i = 0; i < n; ++i) work += work_of(parts[i]);
  const int64_t tasks = task_count(work, kGrain);
  mpe::parallel(tasks, [&](int64_t t) {
    lookup_parts(parts, n, task_begin(work, tasks, t), task_begin(work, tasks, t + 1));
  });
  return MPE_OK;
}

mpe_status weight_grad(const mpe_group* g, const mpe_lookups* l, const int32_t* slots,
                       const mpe_outputs* grad, float* out, void*) {
  const int64_t tasks = task_count(l->n, kGrain);
  Buffer<float> scratch(tasks * g->dim);
  if (!scratch.ok()) return MPE_ERR_MEMORY;
  const Lookup k{*g, *l, slots};
  mpe::parallel(tasks, [&](int64_t task) {
    float* row = scratch.get() + task * g->dim;
    const int64_t end = task_begin(l->n, tasks, task + 1);
    for (int64_t p = task_begin(l->n, tasks, task); p < end;) {
      const int64_t t = l->bags[p] / l->batch_size;
      const int64_t last = min64(end, l->bag_offsets[(t + 1) * l->batch_size]);
      const mpe_matrix matrix = matrix_of(*g, *grad, t);
      with_format(g->tables[t].precision, [&](auto f) {
        table_weight_grad<decltype(f)>(k, t, p, last, matrix, out, row);
      });
      p = last;
    }
  });
  return MPE_OK;
}

mpe_status read_rows(const mpe_group* g, const uint64_t* keys, int64_t n, float* values, void*) {
  const int64_t tasks = task_count(n, kGrain);
  const mpe_cache* c = g->cache;
  mpe::parallel(tasks, [&](int64_t task) {
    const int64_t end = task_begin(n, tasks, task + 1);
    for (int64_t i = task_begin(n, tasks, task); i < end; ++i) {
      const mpe_table& table = g->tables[find_table(*g, keys[i])];
      float* out = values + i * g->dim;
      const int64_t slot = c == nullptr ? -1 : probe(c->tags, c->num_sets, c->ways, keys[i]);
      if (slot >= 0) {
        memcpy(out, cache_row(*g, slot), static_cast<size_t>(g->dim) * sizeof(float));
      } else {
        const uint8_t* row = row_address(table, keys[i], row_bytes_of(table, g->dim));
        decode(table.precision, row, g->dim, out);
      }
    }
  });
  return MPE_OK;
}

MPE_END
