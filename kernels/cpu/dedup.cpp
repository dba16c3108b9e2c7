// The unique rows of a batch, ascending, each with the positions of its lookups in input order.
#include "cpu/kernels.h"
#include "cpu/radix_sort.h"

MPE_BEGIN
namespace {

constexpr int64_t kGrain = 8192;

// Reads the sorted elements: cut at the first dropped one, then heads and positions.
template <class E, class Key, class Pos>
mpe_status segment(const E* sorted, int64_t n, uint64_t limit, Key key, Pos pos, mpe_unique* out) {
  const int64_t valid = first_at_least(
      n, 1, [&](int64_t i) { return static_cast<int64_t>(key(sorted[i]) >= limit ? 1 : 0); });
  const auto is_head = [&](int64_t i) { return i == 0 || key(sorted[i]) != key(sorted[i - 1]); };
  const int64_t tasks = task_count(valid, kGrain);
  Buffer<int64_t> heads(tasks + 1);
  if (!heads.ok()) return MPE_ERR_MEMORY;
  mpe::parallel(tasks, [&](int64_t t) {
    int64_t count = 0;
    const int64_t end = task_begin(valid, tasks, t + 1);
    for (int64_t i = task_begin(valid, tasks, t); i < end; ++i) count += is_head(i) ? 1 : 0;
    heads[t] = count;
  });
  int64_t sum = 0;
  for (int64_t t = 0; t < tasks; ++t) {
    const int64_t here = heads[t];
    heads[t] = sum;
    sum += here;
  }
  mpe::parallel(tasks, [&](int64_t t) {
    int64_t u = heads[t];
    const int64_t end = task_begin(valid, tasks, t + 1);
    for (int64_t i = task_begin(valid, tasks, t); i < end; ++i) {
      if (is_head(i)) {
        out->rows[u] = key(sorted[i]);
        out->starts[u++] = i;
      }
      out->positions[i] = static_cast<int32_t>(pos(sorted[i]));
    }
  });
  *out->count = sum;
  out->starts[sum] = valid;
  return MPE_OK;
}

template <class E, class Make>
mpe_status sort_and_segment(const uint64_t* keys, int64_t n, uint64_t limit, int first_bit,
                            Make make, mpe_unique* out) {
  Buffer<E> a(n), b(n);
  if (!a.ok() || !b.ok()) return MPE_ERR_MEMORY;
  const int64_t tasks = task_count(n, kGrain);
  mpe::parallel(tasks, [&](int64_t t) {
    const int64_t end = task_begin(n, tasks, t + 1);
    // Dropped keys become `limit`, one past the largest, so that few bits are sorted.
    for (int64_t i = task_begin(n, tasks, t); i < end; ++i) {
      a[i] = make(keys[i] < limit ? keys[i] : limit, static_cast<uint64_t>(i));
    }
  });
  E* sorted = radix_sort(a.get(), b.get(), n, first_bit, bits_for(limit + 1));
  if (sorted == nullptr) return MPE_ERR_MEMORY;
  const uint64_t pos_mask = (uint64_t{1} << first_bit) - 1;
  if constexpr (sizeof(E) == sizeof(uint64_t)) {
    return segment(
        sorted, n, limit, [=](const E& e) { return e >> first_bit; },
        [=](const E& e) { return e & pos_mask; }, out);
  } else {
    return segment(
        sorted, n, limit, [](const E& e) { return e.key; }, [](const E& e) { return e.pos; }, out);
  }
}

}  // namespace

mpe_status dedup(const uint64_t* keys, int64_t n, uint64_t limit, mpe_unique* out, void*) {
  *out->count = 0;
  out->starts[0] = 0;
  if (n == 0) return MPE_OK;
  const int pos_bits = bits_for(static_cast<uint64_t>(n));
  if (limit < UINT64_MAX && bits_for(limit + 1) + pos_bits <= 64) {
    return sort_and_segment<uint64_t>(
        keys, n, limit, pos_bits,
        [=](uint64_t key, uint64_t pos) { return pos_bits == 0 ? key : (key << pos_bits) | pos; },
        out);
  }
  return sort_and_segment<KeyPos>(
      keys, n, limit, 0, [](uint64_t key, uint64_t pos) { return KeyPos{key, pos}; }, out);
}

MPE_END
