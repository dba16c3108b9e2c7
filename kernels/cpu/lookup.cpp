// The pooled and unpooled forward: rows straight from low precision or from the cache.
#include "cpu/common.h"
#include "cpu/kernels.h"
#include "mpembed/reduce.h"

MPE_BEGIN
namespace {

constexpr int64_t kGrain = 4096;
constexpr int64_t kAhead = 32;  // lookups between a row's prefetch and its use

struct Lookup {
  const mpe_group& g;
  const mpe_lookups& l;
  const int32_t* slots;

  // Prefetches the row of lookup p, which is in `table` or a later one.
  void prefetch(int64_t p, const mpe_table* table, int64_t row_bytes) const {
    if (p >= l.n || l.keys[p] == MPE_DROPPED) return;
    if (slots != nullptr && slots[p] >= 0) {
      prefetch_bytes(cache_row(g, slots[p]), g.dim * 4, false);
      return;
    }
    const int64_t key = static_cast<int64_t>(l.keys[p]);
    if (key - table->base >= table->num_rows) {
      table = &g.tables[find_table(g, l.keys[p])];
      row_bytes = row_bytes_of(*table, g.dim);
    }
    prefetch_bytes(row_address(*table, l.keys[p], row_bytes), row_bytes, false);
  }
};

// Calls add(row, weight) for lookups [begin, end), in order. `ahead`: with prefetches of whole
// rows, for the first of several passes over a bag.
template <class F, class Add>
inline void each_row(const Lookup& k, const mpe_table& table, int64_t begin, int64_t end,
                     bool ahead, Add add) {
  const int64_t dim = k.g.dim, bytes = F::row_bytes(dim);
  for (int64_t p = begin; p < end; ++p) {
    if (ahead) k.prefetch(p + kAhead, &table, bytes);
    if (k.l.keys[p] == MPE_DROPPED) continue;
    const float w = k.l.weights != nullptr ? k.l.weights[p] : 1.0f;
    if (k.slots != nullptr && k.slots[p] >= 0) {
      add(cached_row(k.g, k.slots[p]), w);
    } else {
      add(StoredRow<F>(row_address(table, k.l.keys[p], bytes), dim), w);
    }
  }
}

// Columns [c, c + kVectors * kLanes) of the sum over lookups [begin, end); kept in registers.
template <class F, int kVectors>
inline void sum_columns(const Lookup& k, const mpe_table& table, int64_t begin, int64_t end,
                        int64_t c, float* acc) {
  Floats sum[kVectors];
  each_row<F>(k, table, begin, end, c == 0, [&](const auto& row, float w) {
    for (int v = 0; v < kVectors; ++v) sum[v] = fused(w, row.load(c + v * kLanes), sum[v]);
  });
  for (int v = 0; v < kVectors; ++v) sum[v].store(acc + c + v * kLanes);
}

// The columns that are left when there are no more whole vectors.
template <class F>
void sum_rest(const Lookup& k, const mpe_table& table, int64_t begin, int64_t end, int64_t c,
              float* acc) {
  const int64_t n = k.g.dim - c;
  Floats sum;
  each_row<F>(k, table, begin, end, c == 0,
              [&](const auto& row, float w) { sum = fused(w, row.load_some(c, n), sum); });
  for (int64_t i = 0; i < n; ++i) acc[c + i] = sum.v[i];
}

// acc = sum of w * row over lookups [begin, end), in order.
template <class F>
void sum_rows(const Lookup& k, const mpe_table& table, int64_t begin, int64_t end, float* acc) {
  const int64_t vectors = k.g.dim / kLanes;
  int64_t v = 0;
  for (; v + 8 <= vectors; v += 8) sum_columns<F, 8>(k, table, begin, end, v * kLanes, acc);
  for (; v + 4 <= vectors; v += 4) sum_columns<F, 4>(k, table, begin, end, v * kLanes, acc);
  for (; v + 2 <= vectors; v += 2) sum_columns<F, 2>(k, table, begin, end, v * kLanes, acc);
  for (; v < vectors; ++v) sum_columns<F, 1>(k, table, begin, end, v * kLanes, acc);
  if (v * kLanes < k.g.dim) sum_rest<F>(k, table, begin, end, v * kLanes, acc);
}

template <class F>
void lookup_bag(const Lookup& k, const mpe_table& table, int64_t bag, const mpe_matrix& out) {
  const int64_t b = bag % k.l.batch_size;
  const int64_t first = k.l.bag_offsets[bag - b];
  const int64_t begin = k.l.bag_offsets[bag], end = k.l.bag_offsets[bag + 1];
  if (table.pooling == MPE_pooling_none) {
    for (int64_t p = begin; p < end; ++p) {
      sum_rows<F>(k, table, p, p + 1, out.data + (p - first) * out.stride);
    }
    return;
  }
  float* acc = out.data + b * out.stride;
  sum_rows<F>(k, table, begin, end, acc);
  if (table.pooling == MPE_pooling_mean && end > begin) {
    const float n = static_cast<float>(end - begin);
    for (int64_t c = 0; c < k.g.dim; ++c) acc[c] /= n;
  }
}

// Weight gradients of lookups [begin, end), all of table t; row: scratch for one row.
template <class F>
void table_weight_grad(const Lookup& k, int64_t t, int64_t begin, int64_t end,
                       const mpe_matrix& grad, float* out, float* row) {
  const mpe_table& table = k.g.tables[t];
  const int64_t dim = k.g.dim, bytes = F::row_bytes(dim), first_bag = t * k.l.batch_size;
  const int64_t first = k.l.bag_offsets[first_bag];
  float* target = out + k.l.origins[t] - first;
  for (int64_t p = begin; p < end; ++p) {
    k.prefetch(p + kAhead, &table, bytes);
    if (k.l.keys[p] == MPE_DROPPED) {
      target[p] = 0.0f;
      continue;
    }
    const float* x = row;
    if (k.slots != nullptr && k.slots[p] >= 0) {
      x = cache_row(k.g, k.slots[p]);
    } else {
      decode_row<F>(row_address(table, k.l.keys[p], bytes), dim, row);
    }
    const int64_t bag = k.l.bags[p];
    const int64_t line = table.pooling == MPE_pooling_none ? p - first : bag - first_bag;
    const float dot = tree_dot(grad.data + line * grad.stride, x, dim);
    const float n = static_cast<float>(k.l.bag_offsets[bag + 1] - k.l.bag_offsets[bag]);
    target[p] = table.pooling == MPE_pooling_mean ? dot / n : dot;
  }
}

// Bags [bag, end) of a part, a table at a time.
void lookup_bags(const mpe_part& part, int64_t bag, int64_t end) {
  const Lookup k{*part.group, *part.lookups, part.slots};
  while (bag < end) {
    const int64_t t = bag / k.l.batch_size;
    const mpe_table& table = k.g.tables[t];
    const mpe_matrix matrix = matrix_of(k.g, *part.outputs, t);
    const int64_t last = min64(end, (t + 1) * k.l.batch_size);
    with_format(table.precision, [&](auto f) {
      for (; bag < last; ++bag) {
        lookup_bag<typename decltype(f)::type>(k, table, bag, matrix);
      }
    });
  }
}

int64_t bags_of(const mpe_part& part) { return part.group->num_tables * part.lookups->batch_size; }
int64_t work_of(const mpe_part& part) { return part.lookups->n + bags_of(part); }

// The bag at which so much of a part's work is done.
int64_t bag_at(const mpe_part& part, int64_t work) {
  return first_at_least(bags_of(part), work,
                        [&](int64_t b) { return part.lookups->bag_offsets[b] + b; });
}

// Work [begin, end) of all parts, one after the other.
void lookup_parts(const mpe_part* parts, int32_t n, int64_t begin, int64_t end) {
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
mpe_status lookup(const mpe_part* parts, int32_t n, void*) {
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
        table_weight_grad<typename decltype(f)::type>(k, t, p, last, matrix, out, row);
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
        decode(table, row_address(table, keys[i], row_bytes_of(table, g->dim)), g->dim, out);
      }
    }
  });
  return MPE_OK;
}

MPE_END
