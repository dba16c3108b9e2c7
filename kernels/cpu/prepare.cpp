// Checks a caller's batch and turns a group's share of it into linear row ids.
#include "cpu/common.h"
#include "cpu/kernels.h"
#include "mpembed/error.h"
#include "total_rows.h"

MPE_BEGIN
namespace {

constexpr int64_t kTaskItems = 8192;  // bags or lookups

// Calls visit(integers) with p as a pointer to integers of so many bits.
template <class Visit>
auto with_integers(int32_t bits, const void* p, Visit visit) {
  if (bits == 32) return visit(static_cast<const int32_t*>(p));
  return visit(static_cast<const int64_t*>(p));
}

// The caller may be changing its memory: what is checked must be what is used, so that the compiler
// may not read it again. (An atomic load would also make it read everything else again.)
template <class Integer>
int64_t read_once(const Integer* p) {
  return static_cast<int64_t>(*static_cast<const volatile Integer*>(p));
}

// The indices out of range that one task found. Tasks are merged in order, so that the first
// position of all is reported.
struct BadIndices {
  int64_t count, position, value;
  int32_t table;
};

template <class Offset>
mpe_status check(const Offset* offsets, const mpe_batch& batch, mpe_error* error) {
  const int64_t n = batch.num_features * batch.batch_size;
  const auto fail = [&](int64_t i) {
    *error = mpe_error{MPE_ERR_OFFSETS, 0, i, static_cast<int64_t>(offsets[i]), 1};
    return MPE_ERR_OFFSETS;
  };
  *error = mpe_error MPE_NO_ERROR;
  if (offsets[0] != 0) return fail(0);
  for (int64_t i = 1; i <= n; ++i) {
    if (offsets[i] < offsets[i - 1]) return fail(i);
  }
  return offsets[n] == batch.num_indices ? MPE_OK : fail(n);
}

// A group's share of a batch. Bags and lookups are cut into tasks independently and across all
// tables at once: one bag may hold most of the lookups, and there may be thousands of tables with a
// few lookups each.
template <class Index, class Offset>
class GroupBatch {
 public:
  GroupBatch(const mpe_group& group, const mpe_batch& batch, mpe_lookups* out)
      : group_(group),
        batch_size_(batch.batch_size),
        indices_(static_cast<const Index*>(batch.indices)),
        offsets_(static_cast<const Offset*>(batch.offsets)),
        weights_(batch.weights),
        out_(out) {}

  int64_t num_bags() const { return group_.num_tables * batch_size_; }

  // Writes where each table begins, in the batch and in the group. Returns the number of lookups.
  int64_t write_tables() const {
    int64_t start = 0;
    for (int64_t t = 0; t < group_.num_tables; ++t) {
      const Offset* offsets = table_offsets(t);
      const int64_t first = static_cast<int64_t>(offsets[0]);
      out_->bag_offsets[t * batch_size_] = start;
      out_->origins[t] = first;
      out_->dropped[t] = 0;
      start += static_cast<int64_t>(offsets[batch_size_]) - first;
    }
    out_->bag_offsets[num_bags()] = start;
    return start;
  }

  // Writes where bags [begin, end) begin, except for the first of each table.
  void write_bags(int64_t begin, int64_t end) const {
    for (int64_t bag = begin; bag < end;) {
      const int64_t t = bag / batch_size_, first = t * batch_size_;
      const int64_t last = min64(end, first + batch_size_);
      const Offset* offsets = table_offsets(t);
      const int64_t shift = out_->bag_offsets[first] - out_->origins[t];
      for (bag += bag == first ? 1 : 0; bag < last; ++bag) {
        out_->bag_offsets[bag] = static_cast<int64_t>(offsets[bag - first]) + shift;
      }
    }
  }

  // Writes keys, bag numbers and weights of lookups [begin, end).
  BadIndices write_lookups(int64_t begin, int64_t end) const {
    BadIndices bad{0, 0, 0, 0};
    if (begin == end) return bad;
    const int64_t* starts = out_->bag_offsets;
    int64_t bag = first_at_least(num_bags(), begin + 1, [&](int64_t b) { return starts[b + 1]; });
    while (begin < end) {
      const int64_t t = bag / batch_size_;
      const int64_t last = min64(end, starts[(t + 1) * batch_size_]);
      const int64_t dropped = write_table_lookups(t, bag, begin, last, &bad);
      if (dropped != 0) __atomic_fetch_add(out_->dropped + t, dropped, __ATOMIC_RELAXED);
      bad.count += dropped;
      begin = last;
      bag = (t + 1) * batch_size_;
      while (begin < end && starts[bag + 1] == begin) ++bag;  // tables without lookups
    }
    return bad;
  }

 private:
  // Lookups [begin, end) of table t, the first in `bag`. Returns how many are out of range.
  int64_t write_table_lookups(int64_t t, int64_t bag, int64_t begin, int64_t end,
                              BadIndices* bad) const {
    const int64_t base = group_.tables[t].base, num_rows = group_.tables[t].num_rows;
    const int64_t shift = out_->origins[t] - out_->bag_offsets[t * batch_size_];
    int64_t dropped = 0;
    for (int64_t p = begin; p < end; ++bag) {
      const int64_t bag_end = min64(end, out_->bag_offsets[bag + 1]);
      for (; p < bag_end; ++p) {
        const int64_t index = read_once(indices_ + p + shift);
        const bool valid = index >= 0 && index < num_rows;
        if (!valid && dropped++ == 0 && bad->count == 0) {
          *bad = BadIndices{0, p + shift, index, group_.tables[t].feature};
        }
        out_->keys[p] = valid ? static_cast<uint64_t>(base + index) : MPE_DROPPED;
        out_->bags[p] = static_cast<int32_t>(bag);
        if (out_->weights != nullptr) out_->weights[p] = weights_[p + shift];
      }
    }
    return dropped;
  }

  const Offset* table_offsets(int64_t t) const {
    return offsets_ + group_.tables[t].feature * batch_size_;
  }

  const mpe_group& group_;
  const int64_t batch_size_;
  const Index* indices_;
  const Offset* offsets_;
  const float* weights_;
  mpe_lookups* out_;
};

template <class Batch>
mpe_status prepare_batch(const Batch& batch, int32_t drop, mpe_error* error) {
  const int64_t n = batch.write_tables(), bags = batch.num_bags();
  const int64_t tasks = task_count(n, kTaskItems);
  Workspace<BadIndices> bad(tasks);
  if (!bad.ok()) return MPE_ERR_MEMORY;
  parallel_range(bags, task_count(bags, kTaskItems),
                 [&](int64_t begin, int64_t end) { batch.write_bags(begin, end); });
  parallel_range(n, tasks, [&](int64_t task, int64_t begin, int64_t end) {
    bad[task] = batch.write_lookups(begin, end);
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
  return with_integers(batch->offset_bits, batch->offsets,
                       [&](auto offsets) { return check(offsets, *batch, error); });
}

mpe_status prepare(const mpe_group* group, const mpe_batch* batch, int32_t drop, mpe_lookups* out,
                   void*, mpe_error* error) {
  return with_integers(batch->index_bits, batch->indices, [&](auto indices) {
    return with_integers(batch->offset_bits, batch->offsets, [&](auto offsets) {
      using Index = std::remove_cv_t<std::remove_pointer_t<decltype(indices)>>;
      using Offset = std::remove_cv_t<std::remove_pointer_t<decltype(offsets)>>;
      return prepare_batch(GroupBatch<Index, Offset>(*group, *batch, out), drop, error);
    });
  });
}

mpe_status discard(const mpe_share* shares, int32_t count, const mpe_error* errors, int32_t n,
                   mpe_error* sink, void*) {
  const mpe_error found = first_error(errors, n);
  if (found.status != MPE_OK && sink->status == MPE_OK) *sink = found;
  for (int32_t i = 0; i < count; ++i) {
    const mpe_group& group = *shares[i].group;
    const mpe_lookups& lookups = *shares[i].lookups;
    if (found.status != MPE_OK) {
      memset(lookups.keys, 0xFF, static_cast<size_t>(lookups.n) * sizeof(uint64_t));
      memset(lookups.dropped, 0, static_cast<size_t>(group.num_tables) * sizeof(int64_t));
      const int64_t bags = group.num_tables * lookups.batch_size;
      memset(lookups.bag_offsets, 0, static_cast<size_t>(bags + 1) * sizeof(int64_t));
    }
    if (shares[i].unique == nullptr) continue;
    mpe_unique unique = *shares[i].unique;
    const mpe_status status = dedup(lookups.keys, lookups.n, total_rows(group), &unique, nullptr);
    if (status != MPE_OK) return status;
  }
  return MPE_OK;
}

mpe_status count(const mpe_group* group, const mpe_lookups* lookups, const mpe_unique* unique,
                 int32_t accesses, int32_t dropped, void*) {
  int64_t first = 0;
  for (int32_t t = 0; t < group->num_tables; ++t) {
    const mpe_table& table = group->tables[t];
    const int64_t* offsets = lookups->bag_offsets + t * lookups->batch_size;
    int64_t last = first;
    if (unique != nullptr) {
      last = first_at_least(unique_count(*unique), table.base + table.num_rows,
                            [&](int64_t i) { return static_cast<int64_t>(unique->rows[i]); });
    }
    if (int64_t* stats = table.stats) {
      if (accesses) {
        stats[MPE_stat_accesses] += offsets[lookups->batch_size] - offsets[0] - lookups->dropped[t];
      }
      if (dropped) stats[MPE_stat_dropped] += lookups->dropped[t];
      stats[MPE_stat_unique] += last - first;
    }
    first = last;
  }
  return MPE_OK;
}

mpe_status advance(uint64_t* step, void*) {
  ++*step;
  return MPE_OK;
}

MPE_END
