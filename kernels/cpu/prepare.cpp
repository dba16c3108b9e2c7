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

// The bags of one table: offsets relative to the group, keys, bag numbers, weights.
template <class Index, class Offset>
class TablePrepare {
 public:
  TablePrepare(const mpe_group& g, int32_t t, const mpe_batch& batch, mpe_lookups* out,
               int64_t group_start)
      : table_(g.tables[t]),
        first_bag_(t * batch.batch_size),
        indices_(static_cast<const Index*>(batch.indices)),
        offsets_(static_cast<const Offset*>(batch.offsets) + table_.feature * batch.batch_size),
        weights_(batch.weights),
        out_(out),
        shift_(group_start - static_cast<int64_t>(offsets_[0])) {}

  Bad bags(int64_t begin, int64_t end) const {
    Bad bad{0, 0, 0};
    for (int64_t b = begin; b < end; ++b) {
      const int64_t last = static_cast<int64_t>(offsets_[b + 1]);
      for (int64_t i = static_cast<int64_t>(offsets_[b]); i < last; ++i) {
        const int64_t index = static_cast<int64_t>(indices_[i]);
        const bool valid = index >= 0 && index < table_.num_rows;
        if (!valid && bad.count++ == 0) {
          bad.position = i;
          bad.value = index;
        }
        out_->keys[i + shift_] = valid ? static_cast<uint64_t>(table_.base + index) : MPE_DROPPED;
        out_->bags[i + shift_] = static_cast<int32_t>(first_bag_ + b);
        if (out_->weights != nullptr) out_->weights[i + shift_] = weights_[i];
      }
      out_->bag_offsets[first_bag_ + b + 1] = last + shift_;
    }
    return bad;
  }

 private:
  const mpe_table& table_;
  int64_t first_bag_;
  const Index* indices_;
  const Offset* offsets_;
  const float* weights_;
  mpe_lookups* out_;
  int64_t shift_;
};

}  // namespace

mpe_status check_offsets(const mpe_batch* batch, void*, mpe_error* error) {
  return with_int(batch->offset_bits, batch->offsets,
                  [&](auto offsets) { return check(offsets, *batch, error); });
}

mpe_status prepare(const mpe_group* g, const mpe_batch* batch, int32_t drop, const mpe_error*,
                   mpe_lookups* out, void*, mpe_error* error) {
  mpe_error found = MPE_NO_ERROR;
  const int64_t size = batch->batch_size;
  out->bag_offsets[0] = 0;
  int64_t start = 0;
  for (int32_t t = 0; t < g->num_tables; ++t) {
    const int64_t n = with_int(batch->offset_bits, batch->offsets, [&](auto offsets) {
      const int64_t first = g->tables[t].feature * size;
      out->origins[t] = static_cast<int64_t>(offsets[first]);
      return static_cast<int64_t>(offsets[first + size]) - static_cast<int64_t>(offsets[first]);
    });
    const int64_t tasks = task_count(n + size, kGrain);
    Buffer<Bad> bad(tasks);
    if (!bad.ok()) return MPE_ERR_MEMORY;
    with_int(batch->index_bits, batch->indices, [&](auto indices) {
      with_int(batch->offset_bits, batch->offsets, [&](auto offsets) {
        using Index = std::remove_cv_t<std::remove_pointer_t<decltype(indices)>>;
        using Offset = std::remove_cv_t<std::remove_pointer_t<decltype(offsets)>>;
        const TablePrepare<Index, Offset> work(*g, t, *batch, out, start);
        mpe::parallel(tasks, [&](int64_t task) {
          bad[task] = work.bags(task_begin(size, tasks, task), task_begin(size, tasks, task + 1));
        });
      });
    });
    int64_t count = 0;
    for (int64_t task = 0; task < tasks; ++task) {
      if (bad[task].count != 0 && found.count == 0) {
        found = mpe_error{MPE_ERR_INDEX, g->tables[t].table_id, bad[task].position,
                          bad[task].value, 0};
      }
      count += bad[task].count;
      found.count += bad[task].count;
    }
    out->dropped[t] = count;
    start += n;
  }
  *error = mpe_error MPE_NO_ERROR;
  if (found.count == 0 || drop) return MPE_OK;
  *error = found;
  return MPE_ERR_INDEX;
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
