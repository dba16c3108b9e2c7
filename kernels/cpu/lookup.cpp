// The pooled and unpooled forward: rows straight from low precision or from the cache.
#include "cpu/kernels.h"
#include "cpu/slots.h"
#include "cpu/sums.h"
#include "mpembed/reduce.h"

MPE_BEGIN
namespace {

// What is inlined where is written out: a compiler's own choice changes with edits elsewhere, and
// cost up to a fifth of the time. Measured: the sum over a bag's rows belongs into the loop over
// bags for codes of whole bytes, and not for smaller ones, whose loops are longer.
#define MPE_INLINE inline __attribute__((always_inline))
#define MPE_NOINLINE __attribute__((noinline))

constexpr int64_t kTaskLookups = 4096;  // lookups plus bags
// How far ahead of its use a row is prefetched: so many bytes of rows, but no more lookups than
// this; where rows meet a gradient, so many lookups.
constexpr int64_t kPrefetchBytes = 8192;
constexpr int64_t kMaxPrefetchDistance = 128;
constexpr int64_t kGradPrefetchDistance = 32;

struct Lookup {
  const mpe_group& group;
  const mpe_lookups& lookups;
  const int32_t* slots;
  const Slots cached;

  Lookup(const mpe_group& group_, const mpe_lookups& lookups_, const int32_t* slots_)
      : group(group_), lookups(lookups_), slots(slots_), cached(group_) {}
};

// The lookups of one table. kPlain: none is cached, weighted or dropped.
template <class Format, bool kPlain>
class TableLookup {
 public:
  static constexpr bool kInlined = kPlain && Format::kBitsPerCode >= 8;  // sum_rows into its caller

  TableLookup(const Lookup& lookup, const mpe_table& table)
      : lookup_(lookup),
        keys_(lookup.lookups.keys),
        rows_(table.rows),
        stride_(table.row_stride),
        base_(static_cast<uint64_t>(table.base)),
        num_rows_(static_cast<uint64_t>(table.num_rows)),
        dim_(lookup.group.dim),
        row_bytes_(Format::row_bytes(dim_)),
        prefetch_distance_(
            min64(kPrefetchBytes / (lookup.slots != nullptr ? dim_ * 4 : row_bytes_) + 1,
                  kMaxPrefetchDistance)) {}

  int64_t dim() const { return dim_; }

  // Calls add(row, weight) for lookups [begin, end), in order. prefetching: of whole rows, for the
  // first of several passes over a bag.
  template <class Add>
  void each_row(int64_t begin, int64_t end, bool prefetching, Add add) const {
    for (int64_t p = begin; p < end; ++p) {
      if (prefetching) prefetch(p + prefetch_distance_);
      if constexpr (kPlain) {
        add(StoredRow<Format>(stored(keys_[p]), dim_), 1.0f);
      } else {
        if (keys_[p] == MPE_DROPPED) continue;
        const float* weights = lookup_.lookups.weights;
        const float weight = weights != nullptr ? weights[p] : 1.0f;
        if (cached(p)) {
          add(lookup_.cached.stored_row(lookup_.slots[p]), weight);
        } else {
          add(StoredRow<Format>(stored(keys_[p]), dim_), weight);
        }
      }
    }
  }

  // Prefetches the row of lookup p, which may belong to a later table.
  void prefetch(int64_t p) const {
    if (p >= lookup_.lookups.n) return;
    if (!kPlain && cached(p)) {
      prefetch_bytes(lookup_.cached.row(lookup_.slots[p]), dim_ * 4, false);
    } else if (keys_[p] - base_ < num_rows_) {
      prefetch_bytes(stored(keys_[p]), row_bytes_, false);
    } else {
      prefetch_other_table(p);
    }
  }

  bool cached(int64_t p) const { return lookup_.slots != nullptr && lookup_.slots[p] >= 0; }
  const uint8_t* stored(uint64_t key) const {
    return rows_ + static_cast<int64_t>(key - base_) * stride_;
  }

 private:
  __attribute__((noinline)) void prefetch_other_table(int64_t p) const {
    if (keys_[p] == MPE_DROPPED) return;
    const mpe_table& table = lookup_.group.tables[find_table(lookup_.group, keys_[p])];
    prefetch_bytes(row_address(table, keys_[p]), row_bytes_of(table, dim_), false);
  }

  const Lookup& lookup_;
  const uint64_t* const keys_;
  uint8_t* const rows_;
  const int64_t stride_;
  const uint64_t base_, num_rows_;
  const int64_t dim_, row_bytes_, prefetch_distance_;
};

// Columns [c, c + kVectors * kLanes) of the sum over lookups [begin, end); kept in registers.
template <int kVectors, class Table>
inline void sum_columns(const Table& table, int64_t begin, int64_t end, int64_t c, float* out) {
  Floats sum[kVectors];
  table.each_row(begin, end, c == 0, [&](const auto& row, float weight) {
    for (int v = 0; v < kVectors; ++v) sum[v] = fused(weight, row.load(c + v * kLanes), sum[v]);
  });
  for (int v = 0; v < kVectors; ++v) sum[v].store(out + c + v * kLanes);
}

// The columns that are left when there are no more whole vectors.
template <class Table>
MPE_INLINE void sum_last_columns(const Table& table, int64_t begin, int64_t end, int64_t c,
                                 float* out) {
  const int64_t n = table.dim() - c;
  Floats sum;
  table.each_row(begin, end, c == 0, [&](const auto& row, float weight) {
    sum = fused(weight, row.load_some(c, n), sum);
  });
  for (int64_t i = 0; i < n; ++i) out[c + i] = sum.v[i];
}
template <class Table>
MPE_NOINLINE void call_sum_last_columns(const Table& table, int64_t begin, int64_t end, int64_t c,
                                        float* out) {
  sum_last_columns(table, begin, end, c, out);
}

// out = sum of weight * row over lookups [begin, end), in order.
template <class Table>
MPE_INLINE void sum_rows(const Table& table, int64_t begin, int64_t end, float* out) {
  const int64_t vectors = table.dim() / kLanes;
  int64_t v = 0;
  for (; v + 8 <= vectors; v += 8) sum_columns<8>(table, begin, end, v * kLanes, out);
  for (; v + 4 <= vectors; v += 4) sum_columns<4>(table, begin, end, v * kLanes, out);
  for (; v + 2 <= vectors; v += 2) sum_columns<2>(table, begin, end, v * kLanes, out);
  for (; v < vectors; ++v) sum_columns<1>(table, begin, end, v * kLanes, out);
  if (v * kLanes == table.dim()) return;
  if constexpr (Table::kInlined) {
    call_sum_last_columns(table, begin, end, v * kLanes, out);
  } else {
    sum_last_columns(table, begin, end, v * kLanes, out);
  }
}
template <class Table>
MPE_NOINLINE void call_sum_rows(const Table& table, int64_t begin, int64_t end, float* out) {
  sum_rows(table, begin, end, out);
}

// Bags [bag, end) of table t.
template <class Format, bool kPlain>
void sum_bags(const Lookup& lookup, int64_t t, int64_t bag, int64_t end, const Sums& sums) {
  const mpe_table& table = lookup.group.tables[t];
  const TableLookup<Format, kPlain> rows(lookup, table);
  const int64_t* offsets = lookup.lookups.bag_offsets;
  const int64_t first_bag = t * lookup.lookups.batch_size, first = offsets[first_bag];
  if (table.pooling == MPE_pooling_none) {
    for (int64_t p = offsets[bag]; p < offsets[end]; ++p) {
      call_sum_rows(rows, p, p + 1, sums.begin(p - first));
      sums.end(p - first);
    }
    return;
  }
  for (int64_t bag_end = offsets[bag]; bag < end; ++bag) {
    const int64_t bag_begin = bag_end;
    bag_end = offsets[bag + 1];
    float* sum = sums.begin(bag - first_bag);
    if constexpr (TableLookup<Format, kPlain>::kInlined) {
      sum_rows(rows, bag_begin, bag_end, sum);
    } else {
      call_sum_rows(rows, bag_begin, bag_end, sum);
    }
    if (table.pooling == MPE_pooling_mean && bag_end > bag_begin) {
      const float n = static_cast<float>(bag_end - bag_begin);
      for (int64_t c = 0; c < lookup.group.dim; ++c) sum[c] /= n;
    }
    sums.end(bag - first_bag);
  }
}

// Weight gradients of lookups [begin, end), all of table t. room: for two rows.
template <class Format>
void table_weight_grad(const Lookup& lookup, int64_t t, int64_t begin, int64_t end,
                       const mpe_outputs& grad, float* out, float* room) {
  const mpe_table& table = lookup.group.tables[t];
  const mpe_lookups& lookups = lookup.lookups;
  const int64_t dim = lookup.group.dim, first_bag = t * lookups.batch_size;
  const int64_t first = lookups.bag_offsets[first_bag];
  float* table_out = out + lookups.origins[t] - first;
  const TableLookup<Format, false> rows(lookup, table);
  const OutputRows grads(grad, table, t);
  for (int64_t p = begin; p < end; ++p) {
    rows.prefetch(p + kGradPrefetchDistance);
    if (lookups.keys[p] == MPE_DROPPED) {
      table_out[p] = 0.0f;
      continue;
    }
    const float* x = room;
    if (rows.cached(p)) {
      x = lookup.cached.row(lookup.slots[p]);
    } else {
      decode_row<Format>(rows.stored(lookups.keys[p]), dim, room);
    }
    const int64_t bag = lookups.bags[p];
    const int64_t line = table.pooling == MPE_pooling_none ? p - first : bag - first_bag;
    const uint8_t* const given = grads.row(line);
    const float* g = reinterpret_cast<const float*>(given);
    if (grad.format != MPE_format_fp32) {
      decode(grad.format, given, dim, room + dim);
      g = room + dim;
    }
    const float dot = tree_dot(g, x, dim);
    const float n = static_cast<float>(lookups.bag_offsets[bag + 1] - lookups.bag_offsets[bag]);
    table_out[p] = table.pooling == MPE_pooling_mean ? dot / n : dot;
  }
}

// Bags [bag, end) of one group, a table at a time.
void lookup_bags(const mpe_lookup_args& part, int64_t bag, int64_t end, float* room) {
  const Lookup lookup(*part.group, *part.lookups, part.slots);
  const mpe_lookups& lookups = lookup.lookups;
  while (bag < end) {
    const int64_t t = bag / lookups.batch_size;
    const mpe_table& table = lookup.group.tables[t];
    const Sums sums(*part.outputs, lookup.group, t, room);
    const int64_t last = min64(end, (t + 1) * lookups.batch_size);
    const bool plain =
        lookup.slots == nullptr && lookups.weights == nullptr && lookups.dropped[t] == 0;
    with_format(table.precision, [&](auto format) {
      using Format = decltype(format);
      (plain ? sum_bags<Format, true> : sum_bags<Format, false>)(lookup, t, bag, last, sums);
    });
    bag = last;
  }
}

int64_t bags_of(const mpe_lookup_args& part) {
  return part.group->num_tables * part.lookups->batch_size;
}
int64_t work_of(const mpe_lookup_args& part) { return part.lookups->n + bags_of(part); }

// The bag at which so much of a group's work is done.
int64_t bag_at(const mpe_lookup_args& part, int64_t work) {
  return first_at_least(bags_of(part), work,
                        [&](int64_t bag) { return part.lookups->bag_offsets[bag] + bag; });
}

// Work [begin, end) of all groups, one after the other.
void lookup_groups(const mpe_lookup_args* parts, int32_t n, int64_t begin, int64_t end,
                   float* room) {
  for (int32_t i = 0; i < n && end > 0; ++i) {
    const int64_t work = work_of(parts[i]);
    if (begin < work) {
      lookup_bags(parts[i], bag_at(parts[i], begin), bag_at(parts[i], min64(end, work)), room);
    }
    begin = begin > work ? begin - work : 0;
    end -= work;
  }
}

}  // namespace

// The work is cut by lookups plus bags, across all groups: a group may have only a few bags.
mpe_status lookup(const mpe_lookup_args* parts, int32_t n, void*) {
  int64_t work = 0, columns = 0;
  for (int32_t i = 0; i < n; ++i) {
    work += work_of(parts[i]);
    if (parts[i].outputs->format == MPE_format_fp32) continue;
    if (columns < parts[i].group->dim) columns = parts[i].group->dim;
  }
  const int64_t tasks = task_count(work, kTaskLookups);
  const Workspace<float> sums(tasks * columns);
  if (!sums.ok()) return MPE_ERR_MEMORY;
  float* const room = sums.get();
  parallel_range(work, tasks, [=](int64_t task, int64_t begin, int64_t end) {
    lookup_groups(parts, n, begin, end, room + task * columns);
  });
  return MPE_OK;
}

mpe_status weight_grad(const mpe_group* group, const mpe_lookups* lookups, const int32_t* slots,
                       const mpe_outputs* grad, float* out, void*) {
  const int64_t tasks = task_count(lookups->n, kTaskLookups);
  Workspace<float> room(tasks * 2 * group->dim);
  if (!room.ok()) return MPE_ERR_MEMORY;
  const Lookup lookup(*group, *lookups, slots);
  parallel_range(lookups->n, tasks, [&](int64_t task, int64_t begin, int64_t end) {
    float* rows = room.get() + task * 2 * group->dim;
    while (begin < end) {
      const int64_t t = lookups->bags[begin] / lookups->batch_size;
      const int64_t last = min64(end, lookups->bag_offsets[(t + 1) * lookups->batch_size]);
      with_format(group->tables[t].precision, [&](auto format) {
        table_weight_grad<decltype(format)>(lookup, t, begin, last, *grad, out, rows);
      });
      begin = last;
    }
  });
  return MPE_OK;
}

mpe_status read_rows(const mpe_group* group, const uint64_t* keys, int64_t n, float* values,
                     void*) {
  const mpe_cache* cache = group->cache;
  const Slots cached(*group);
  parallel_each(n, task_count(n, kTaskLookups), [&](int64_t i) {
    const mpe_table& table = group->tables[find_table(*group, keys[i])];
    float* out = values + i * group->dim;
    const int64_t slot =
        cache == nullptr ? -1 : probe(cache->tags, cache->num_sets, cache->ways, keys[i]);
    if (slot >= 0) {
      memcpy(out, cached.row(slot), static_cast<size_t>(group->dim) * sizeof(float));
    } else {
      decode(table.precision, row_address(table, keys[i]), group->dim, out);
    }
  });
  return MPE_OK;
}

MPE_END
