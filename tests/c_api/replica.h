// Two backends of the C API that do the same: their memory, and the comparison of what they hold.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "mpembed/api.h"

namespace replicas {

inline std::string g_report;  // what differed or failed

// A backend and the memory that was taken from it.
class Replica {
 public:
  explicit Replica(const mpe_backend* backend) : b(backend) {}
  ~Replica() {
    for (void* p : owned_) b->release(p, MPE_PLACEMENT_DEVICE);
  }
  Replica(const Replica&) = delete;
  Replica& operator=(const Replica&) = delete;

  template <class T>
  T* make(int64_t n, const T* from = nullptr) {
    void* p = nullptr;
    const int64_t bytes = n * static_cast<int64_t>(sizeof(T));
    check(b->allocate(bytes, MPE_PLACEMENT_DEVICE, &p), "allocate");
    owned_.push_back(p);
    if (from != nullptr) {
      check(b->copy(p, from, bytes, nullptr), "copy");
    } else {
      check(b->fill(p, 0, bytes, nullptr), "fill");
    }
    check(b->synchronize(nullptr), "synchronize");
    return static_cast<T*>(p);
  }
  template <class T>
  std::vector<T> read(const T* p, int64_t n) {
    std::vector<T> out(static_cast<size_t>(n));
    check(b->copy(out.data(), p, n * static_cast<int64_t>(sizeof(T)), nullptr), "copy");
    check(b->synchronize(nullptr), "synchronize");
    return out;
  }
  void check(mpe_status status, const char* what) {
    if (status == MPE_OK) return;
    g_report += std::string(b->name) + ": " + what + ": status " + std::to_string(status) + " " +
                b->last_error() + "\n";
  }

  const mpe_backend* b;

 private:
  std::vector<void*> owned_;
};

inline const mpe_error kNoError = MPE_NO_ERROR;

// Room for the unique rows of n lookups.
inline mpe_unique make_unique(Replica& r, int64_t n) {
  return mpe_unique{r.make<int64_t>(1), r.make<uint64_t>(n), r.make<int64_t>(n + 1),
                    r.make<int32_t>(n)};
}

// An empty cache for rows of an optimizer's tables.
inline mpe_cache make_cache(Replica& r, int32_t optimizer, int32_t policy, int64_t sets,
                            int64_t dim) {
  mpe_cache cache{};
  cache.num_sets = sets;
  cache.ways = 32;
  cache.policy = policy;
  const int64_t slots = sets * cache.ways, values = mpe_slot_values(optimizer);
  const std::vector<uint64_t> empty(static_cast<size_t>(slots), MPE_EMPTY_TAG);
  cache.tags = r.make<uint64_t>(slots, empty.data());
  cache.meta = r.make<uint32_t>(slots);
  cache.rows = r.make<float>(slots * mpe_slot_floats(optimizer, dim));
  if (values > 0) cache.values = r.make<float>(slots * values);
  cache.counters = r.make<uint64_t>(2);
  cache.sketch_width = 1;
  while (cache.sketch_width < slots) cache.sketch_width *= 2;
  cache.sketch = r.make<uint8_t>(MPE_SKETCH_ROWS * cache.sketch_width);  // not every policy uses it
  return cache;
}

// Equal bytes; any NaN equals any other, for its sign and payload are the hardware's.
template <class T>
inline bool same(const T& x, const T& y) {
  return memcmp(&x, &y, sizeof(T)) == 0;
}
inline bool same(float x, float y) {
  return memcmp(&x, &y, sizeof x) == 0 || (std::isnan(x) && std::isnan(y));
}

template <class T>
inline void compare(const std::vector<T>& p, const std::vector<T>& q, const std::string& what) {
  const int64_t n = static_cast<int64_t>(p.size());
  int64_t first = -1, count = 0;
  for (int64_t i = 0; i < n; ++i) {
    if (same(p[static_cast<size_t>(i)], q[static_cast<size_t>(i)])) continue;
    if (first < 0) first = i;
    ++count;
  }
  if (first < 0) return;
  char line[256];
  unsigned long long u = 0, v = 0;
  memcpy(&u, &p[static_cast<size_t>(first)], sizeof(T) < 8 ? sizeof(T) : 8);
  memcpy(&v, &q[static_cast<size_t>(first)], sizeof(T) < 8 ? sizeof(T) : 8);
  std::snprintf(line, sizeof line, "%s: %lld of %lld differ, first at %lld: %llx and %llx\n",
                what.c_str(), static_cast<long long>(count), static_cast<long long>(n),
                static_cast<long long>(first), u, v);
  g_report += line;
}

template <class T>
inline void compare(Replica& a, const T* x, Replica& b, const T* y, int64_t n,
                    const std::string& what) {
  compare(a.read(x, n), b.read(y, n), what);
}

}  // namespace replicas
