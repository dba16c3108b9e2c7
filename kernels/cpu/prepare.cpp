// Checks a caller's batch and turns a group's share of it into linear row ids.
#include "cpu/common.h"
#include "cpu/kernels.h"
#include "mpembed/error.h"

MPE_BEGIN
namespace {

constexpr int64_t kGrain = 8192;

template <class F>
auto with_int(int32_t bits, const void* p, F f) {
  if (bits == 32) return f(static_cast<const int32_t*>(p));
  return f(static_cast<const int64_t*>(p));
}

// What one task found wrong; tasks are merged in order, so that the first position wins.
struct Bad {
  int64_t count, position, value;
  int32_t table;
};

template <class Offset>
mpe_status check(const Offset* offsets, const mpe_batch& b, mpe_error* error) {
  const int64_t n = b.num_features * b.batch_size;
  const auto fail = [&](int64_t i) {
    *error = mpe_error{MPE_ERR_OFFSETS, 0, i, static_cast<int64_t>(offsets[i]), 1};
    return MPE_ERR_OFFSETS;
  };
  *error = mpe_error MPE_NO_ERROR;
  if (offsets[0] != 0) return fail(0);
  for (int64_t i = 1; i <= n; ++i) {
    if (offsets[i] < offsets[i - 1]) return fail(i);
  }
  return offsets[n] == b.num_indices ? MPE_OK : fail(n);
}

// A group's share of a batch. Bags and lookups are cut independently, across all tables at once:
// one bag may hold most of the lookups, and there may be thousands of tables with a few each.
template <class Index, class Offset>
class Prepare {
 public:
  Prepare(const mpe_group& g, const mpe_batch& batch, mpe_lookups* out)
      : g_(g),
        size_(batch.batch_size),
        indices_(static_cast<const Index*>(batch.indices)),
        offsets_(static_cast<const Offset*>(batch.offsets)),
        weights_(batch.weights),
        out_(out) {}

  // Where each table begins, in the batch and in the group. Returns the number of lookups.
  int64_t tables() const {
    int64_t start = 0;
    for (int64_t t = 0; t < g_.num_tables; ++t) {
      const Offset* ends = table_offsets(t);
      out_->bag_offsets[t * size_] = start;
      out_->origins[t] = static_cast<int64_t>(ends[0]);
      out_->dropped[t] = 0;
      start += static_cast<int64_t>(ends[size_]) - static_cast<int64_t>(ends[0]);
    }
    out_->bag_offsets[g_.num_tables * size_] = start;
    return start;
  }

  // Where bags [begin, end) begin; the first of each table is there already.
  void bags(int64_t begin, int64_t end) const {
    for (int64_t bag = begin; bag < end;) {
      const int64_t t = bag / size_, first = t * size_, last = min64(end, first + size_);
      const Offset* ends = table_offsets(t);
      const int64_t shift = out_->bag_offsets[first] - out_->origins[t];
      for (bag += bag == first ? 1 : 0; bag < last; ++bag) {
        out_->bag_offsets[bag] = static_cast<int64_t>(ends[bag - first]) + shift;
      }
    }
  }

  // Keys, bag numbers and weights of lookups [begin, end).
  Bad lookups(int64_t begin, int64_t end) const {
    Bad bad{0, 0, 0, 0};
    if (begin == end) return bad;
    const int64_t* starts = out_->bag_offsets;
    int64_t bag =
        first_at_least(g_.num_tables * size_, begin + 1, [&](int64_t b) { return starts[b + 1]; });
    while (begin < end) {
      const int64_t t = bag / size_;
      const int64_t last = min64(end, starts[(t + 1) * size_]);
      const int64_t dropped = part_of_table(t, bag, begin, last, &bad);
      if (dropped != 0) __atomic_fetch_add(out_->dropped + t, dropped, __ATOMIC_RELAXED);
      bad.count += dropped;
      begin = last;
      bag = (t + 1) * size_;
      while (begin < end && starts[bag + 1] == begin) ++bag;  // tables without lookups
    }
    return bad;
  }

 private:
  // Lookups [begin, end) of table t, the first in `bag`. Returns how many are out of range.
  int64_t part_of_table(int64_t t, int64_t bag, int64_t begin, int64_t end, Bad* bad) const {
    const int64_t base = g_.tables[t].base, num_rows = g_.tables[t].num_rows;
    const int64_t shift = out_->origins[t] - out_->bag_offsets[t * size_];
    int64_t dropped = 0;
    for (int64_t p = begin; p < end; ++bag) {
      const int64_t stop = min64(end, out_->bag_offsets[bag + 1]);
      for (; p < stop; ++p) {
        const int64_t index = static_cast<int64_t>(indices_[p + shift]);
        const bool valid = index >= 0 && index < num_rows;
        if (!valid && dropped++ == 0 && bad->count == 0) {
          *bad = Bad{0, p + shift, index, g_.tables[t].table_id};
        }
        out_->keys[p] = valid ? static_cast<uint64_t>(base + index) : MPE_DROPPED;
        out_->bags[p] = static_cast<int32_t>(bag);
        if (out_->weights != nullptr) out_->weights[p] = weights_[p + shift];
      }
    }
    return dropped;
  }

  const Offset* table_offsets(int64_t t) const { return offsets_ + g_.tables[t].feature * size_; }

  const mpe_group& g_;
  const int64_t size_;
  const Index* indices_;
  const Offset* offsets_;
  const float* weights_;
  mpe_lookups* out_;
};

template <class P>
mpe_status run(const P& work, int64_t bags, int32_t drop, mpe_error* error) {
  const int64_t n = work.tables();
  const int64_t bag_tasks = task_count(bags, kGrain), tasks = task_count(n, kGrain);
  Buffer<Bad> bad(tasks);
  if (!bad.ok()) return MPE_ERR_MEMORY;
  mpe::parallel(bag_tasks, [&](int64_t task) {
    work.bags(task_begin(bags, bag_tasks, task), task_begin(bags, bag_tasks, task + 1));
  });
  mpe::parallel(tasks, [&](int64_t task) {
    bad[task] = work.lookups(task_begin(n, tasks, task), task_begin(n, tasks, task + 1));
  });
  mpe_error found = MPE_NO_ERROR;
  for (int64_t task = 0; task < tasks; ++task) {
    if (bad[task].count == 0) continue;
    if (found.count == 0) {
      found = mpe_error{MPE_ERR_INDEX, bad[task].table, bad[task].position, bad[task].value, 0};
    }
    found.count += bad[task].count;
  }
  if (drop) found = mpe_error MPE_NO_ERROR;
  *error = found;
  return static_cast<mpe_status>(found.status);
}

}  // namespace

mpe_status check_offsets(const mpe_batch* batch, void*, mpe_error* error) {
  return with_int(batch->offset_bits, batch->offsets,
                  [&](auto offsets) { return check(offsets, *batch, error); });
}

mpe_status prepare(const mpe_group* g, const mpe_batch* batch, int32_t drop, const mpe_error*,
                   mpe_lookups* out, void*, mpe_error* error) {
  return with_int(batch->index_bits, batch->indices, [&](auto indices) {
    return with_int(batch->offset_bits, batch->offsets, [&](auto offsets) {
      using Index = std::remove_cv_t<std::remove_pointer_t<decltype(indices)>>;
      using Offset = std::remove_cv_t<std::remove_pointer_t<decltype(offsets)>>;
      return run(Prepare<Index, Offset>(*g, *batch, out), g->num_tables * batch->batch_size, drop,
                 error);
    });
  });
}

mpe_status discard(const mpe_group* g, mpe_lookups* l, const mpe_error* errors, int32_t n,
                   mpe_error* sink, void*) {
  const mpe_error found = first_error(errors, n);
  if (found.status == MPE_OK) return MPE_OK;
  if (sink->status == MPE_OK) *sink = found;
  memset(l->keys, 0xFF, static_cast<size_t>(l->n) * sizeof(uint64_t));
  memset(l->dropped, 0, static_cast<size_t>(g->num_tables) * sizeof(int64_t));
  const int64_t bags = g->num_tables * l->batch_size;
  memset(l->bag_offsets, 0, static_cast<size_t>(bags + 1) * sizeof(int64_t));
  return MPE_OK;
}

mpe_status count(const mpe_group* g, const mpe_lookups* l, const mpe_unique* unique,
                 int32_t accesses, int32_t dropped, void*) {
  int64_t first = 0;
  for (int32_t t = 0; t < g->num_tables; ++t) {
    const mpe_table& table = g->tables[t];
    const int64_t* ends = l->bag_offsets + t * l->batch_size;
    int64_t* stats = table.stats;
    if (stats == nullptr) continue;
    if (accesses) stats[MPE_stat_accesses] += ends[l->batch_size] - ends[0] - l->dropped[t];
    if (dropped) stats[MPE_stat_dropped] += l->dropped[t];
    if (unique == nullptr) continue;
    const int64_t last =
        first_at_least(unique_count(*unique), table.base + table.num_rows,
                       [&](int64_t i) { return static_cast<int64_t>(unique->rows[i]); });
    stats[MPE_stat_unique] += last - first;
    first = last;
  }
  return MPE_OK;
}

mpe_status advance(uint64_t* step, void*) {
  ++*step;
  return MPE_OK;
}

MPE_END
