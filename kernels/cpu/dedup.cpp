// The unique rows of a batch, ascending, each with the positions of its lookups in input order.
#include "cpu/kernels.h"
#include "cpu/radix_sort.h"

MPE_BEGIN
namespace {

constexpr int64_t kTaskLookups = 8192;

// Each task's count becomes the sum of the counts before it. Returns the sum of all.
int64_t exclusive_sum(int64_t* counts, int64_t tasks) {
  int64_t sum = 0;
  for (int64_t task = 0; task < tasks; ++task) {
    const int64_t here = counts[task];
    counts[task] = sum;
    sum += here;
  }
  return sum;
}

// Writes the unique rows of sorted elements. Dropped keys come last and are left out.
template <class Element, class Key, class Position>
mpe_status write_unique(const Element* sorted, int64_t n, uint64_t limit, Key key,
                        Position position, mpe_unique* out) {
  const int64_t valid = first_at_least(
      n, 1, [&](int64_t i) { return static_cast<int64_t>(key(sorted[i]) >= limit ? 1 : 0); });
  const auto is_first = [=](int64_t i) { return i == 0 || key(sorted[i]) != key(sorted[i - 1]); };
  const int64_t tasks = task_count(valid, kTaskLookups);
  Workspace<int64_t> firsts(tasks);
  if (!firsts.ok()) return MPE_ERR_MEMORY;
  parallel_range(valid, tasks, [&](int64_t task, int64_t begin, int64_t end) {
    int64_t count = 0;
    for (int64_t i = begin; i < end; ++i) count += is_first(i) ? 1 : 0;
    firsts[task] = count;
  });
  const int64_t count = exclusive_sum(firsts.get(), tasks);
  parallel_range(valid, tasks, [&](int64_t task, int64_t begin, int64_t end) {
    // Without a branch, which repeated keys would make unpredictable: an element that begins no row
    // is overwritten by the next one that does. After the last of those, nothing may be written.
    int64_t row = firsts[task], last = end;
    while (last > begin && !is_first(last - 1)) --last;
    for (int64_t i = begin; i < last; ++i) {
      out->rows[row] = key(sorted[i]);
      out->starts[row] = i;
      row += is_first(i) ? 1 : 0;
    }
    for (int64_t i = begin; i < end; ++i) {
      out->positions[i] = static_cast<int32_t>(position(sorted[i]));
    }
  });
  *out->count = count;
  out->starts[count] = valid;
  return MPE_OK;
}

// make(key, position): the element to sort.
template <class Element, class Make>
mpe_status sort_and_write(const uint64_t* keys, int64_t n, uint64_t limit, int first_bit, Make make,
                          mpe_unique* out) {
  Workspace<Element> elements(n), spare(n);
  if (!elements.ok() || !spare.ok()) return MPE_ERR_MEMORY;
  // Dropped keys become `limit`, one past the largest, so that few bits are sorted.
  parallel_each(n, task_count(n, kTaskLookups), [&](int64_t i) {
    elements[i] = make(keys[i] < limit ? keys[i] : limit, static_cast<uint64_t>(i));
  });
  Element* sorted = radix_sort(elements.get(), spare.get(), n, first_bit, bits_for(limit + 1));
  if (sorted == nullptr) return MPE_ERR_MEMORY;
  const uint64_t position_mask = (uint64_t{1} << first_bit) - 1;
  if constexpr (sizeof(Element) == sizeof(uint64_t)) {
    return write_unique(
        sorted, n, limit, [=](const Element& element) { return element >> first_bit; },
        [=](const Element& element) { return element & position_mask; }, out);
  } else {
    return write_unique(
        sorted, n, limit, [](const Element& element) { return element.key; },
        [](const Element& element) { return element.position; }, out);
  }
}

}  // namespace

mpe_status dedup(const uint64_t* keys, int64_t n, uint64_t limit, mpe_unique* out, void*) {
  *out->count = 0;
  out->starts[0] = 0;
  if (n == 0) return MPE_OK;
  const int position_bits = bits_for(static_cast<uint64_t>(n));
  if (limit < UINT64_MAX && bits_for(limit + 1) + position_bits <= 64) {
    return sort_and_write<uint64_t>(
        keys, n, limit, position_bits,
        [=](uint64_t key, uint64_t position) {
          return position_bits == 0 ? key : (key << position_bits) | position;
        },
        out);
  }
  return sort_and_write<KeyAndPosition>(
      keys, n, limit, 0,
      [](uint64_t key, uint64_t position) { return KeyAndPosition{key, position}; }, out);
}

MPE_END
