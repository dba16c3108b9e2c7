// Two backends of the C API that do the same: their memory, a collection and a batch on each, and
// the comparison of what they hold.
#pragma once

#include <cmath>
#include <cstdio>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "mpembed/api.h"

namespace replicas {

struct Options {
  uint64_t seed;
  int32_t dim, steps, optimizer, policy, batch_size, longest, rows, sets, rounding, decay, drop;
  int32_t state_format, copies;
  int32_t format;  // of all tables, or -1: one table each
};

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

// A group of one table a format and pooling (and copy), and its cache.
struct Collection {
  Replica replica;
  std::vector<mpe_table> tables;
  mpe_cache cache{};
  mpe_group group{};
  uint64_t* step;
  mpe_error *sink, *nonfinite;

  Collection(const mpe_backend* backend, const Options& o) : replica(backend) {
    int64_t base = 0, column = 0;
    const int32_t formats = o.format < 0 ? MPE_NUM_FORMATS : 1;
    for (int32_t i = 0; i < formats * MPE_NUM_POOLINGS * o.copies; ++i) {
      mpe_table t{};
      t.precision = o.format < 0 ? i % formats : o.format;
      t.pooling = i / formats % MPE_NUM_POOLINGS;
      t.num_rows = o.rows + i % 21;
      t.base = base;
      t.table_id = t.feature = i;
      t.column = column;
      t.state_format = o.state_format;
      t.rows = replica.make<uint8_t>(t.num_rows * mpe_row_bytes(t.precision, o.dim));
      t.state = replica.make<float>(t.num_rows * o.dim);
      t.stats = replica.make<int64_t>(MPE_NUM_STATS);
      tables.push_back(t);
      base += t.num_rows;
      column += o.dim;
    }
    step = replica.make<uint64_t>(1);
    sink = replica.make<mpe_error>(1, &kNoError);
    nonfinite = replica.make<mpe_error>(1, &kNoError);
    if (o.policy >= 0) make_cache(o);
    group.tables = tables.data();
    group.device_tables =
        replica.make<mpe_table>(static_cast<int64_t>(tables.size()), tables.data());
    group.cache = o.policy >= 0 ? &cache : nullptr;
    group.step = step;
    group.seed = o.seed;
    group.num_tables = static_cast<int32_t>(tables.size());
    group.dim = o.dim;
    group.rounding = o.rounding;
    for (int32_t t = 0; t < group.num_tables; ++t) {
      const int32_t kind = t % MPE_NUM_INITS;
      replica.check(replica.b->init_rows(&group, t, kind, kind == MPE_init_normal ? 0.3f : -0.5f,
                                         0.7f, nullptr),
                    "init_rows");
    }
  }

  int64_t slots() const { return cache.num_sets * cache.ways; }
  int64_t width() const { return static_cast<int64_t>(group.num_tables) * group.dim; }
  int64_t total_rows() const { return tables.back().base + tables.back().num_rows; }

 private:
  void make_cache(const Options& o) {
    cache.num_sets = o.sets;
    cache.ways = 32;
    cache.policy = o.policy;
    const std::vector<uint64_t> empty(static_cast<size_t>(slots()), MPE_EMPTY_TAG);
    cache.tags = replica.make<uint64_t>(slots(), empty.data());
    cache.meta = replica.make<uint32_t>(slots());
    cache.rows = replica.make<float>(slots() * o.dim);
    cache.counters = replica.make<uint64_t>(2);
    cache.sketch_width = 1;
    while (cache.sketch_width < slots()) cache.sketch_width *= 2;
    cache.sketch = replica.make<uint8_t>(MPE_SKETCH_ROWS * cache.sketch_width);
  }
};

// Equal bytes; any NaN equals any other, for its sign and payload are the hardware's.
template <class T>
inline bool same(const T& x, const T& y) {
  return memcmp(&x, &y, sizeof(T)) == 0;
}
inline bool same(float x, float y) {
  return memcmp(&x, &y, sizeof x) == 0 || (std::isnan(x) && std::isnan(y));
}

template <class T>
inline void compare(Replica& a, const T* x, Replica& b, const T* y, int64_t n,
                    const std::string& what) {
  const std::vector<T> p = a.read(x, n), q = b.read(y, n);
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

// Bags of rows that are all in range.
inline void draw_bags(const Collection& c, const Options& o, std::mt19937_64& rng,
                      std::vector<int64_t>* indices, std::vector<int64_t>* offsets) {
  offsets->assign(1, 0);
  for (const mpe_table& t : c.tables) {
    for (int32_t bag = 0; bag < o.batch_size; ++bag) {
      for (uint64_t i = rng() % (static_cast<uint64_t>(o.longest) + 1); i > 0; --i) {
        indices->push_back(static_cast<int64_t>(rng() % static_cast<uint64_t>(t.num_rows)));
      }
      offsets->push_back(static_cast<int64_t>(indices->size()));
    }
  }
}

// What a batch leaves behind on one replica.
struct Batch {
  mpe_batch b{};
  mpe_lookups l{};
  mpe_unique u{};
  mpe_error* errors;
  int32_t *slots, *fresh, *each;
  float *out, *weight_grad, *grad;
  mpe_outputs outputs{}, gradients{};

  Batch(Collection& c, const Options& o, const std::vector<int64_t>& indices,
        const std::vector<int64_t>& offsets, const std::vector<float>& weights,
        const std::vector<float>& gradient, bool weighted, bool narrow) {
    Replica& s = c.replica;
    const int64_t n = static_cast<int64_t>(indices.size()), rows = o.batch_size;
    const int64_t room = n > rows ? n : rows, tables = c.group.num_tables;
    if (narrow) {
      const std::vector<int32_t> i32(indices.begin(), indices.end());
      b.indices = s.make<int32_t>(n + 1, nullptr);
      s.check(s.b->copy(const_cast<void*>(b.indices), i32.data(), n * 4, nullptr), "copy");
      s.check(s.b->synchronize(nullptr), "synchronize");
    } else {
      b.indices = s.make<int64_t>(n, indices.data());
    }
    b.index_bits = narrow ? 32 : 64;
    b.offsets = s.make<int64_t>(static_cast<int64_t>(offsets.size()), offsets.data());
    b.offset_bits = 64;
    b.weights = weighted ? s.make<float>(n, weights.data()) : nullptr;
    b.num_indices = n;
    b.batch_size = o.batch_size;
    b.num_features = c.group.num_tables;
    l.n = n;
    l.batch_size = o.batch_size;
    l.keys = s.make<uint64_t>(n);
    l.bags = s.make<int32_t>(n);
    l.bag_offsets = s.make<int64_t>(tables * o.batch_size + 1);
    l.origins = s.make<int64_t>(tables);
    l.dropped = s.make<int64_t>(tables);
    l.weights = weighted ? s.make<float>(n) : nullptr;
    u.count = s.make<int64_t>(1);
    u.rows = s.make<uint64_t>(n);
    u.starts = s.make<int64_t>(n + 1);
    u.positions = s.make<int32_t>(n);
    const mpe_error none[2] = {kNoError, kNoError};
    errors = s.make<mpe_error>(2, none);
    slots = s.make<int32_t>(n);
    fresh = s.make<int32_t>(n);
    each = s.make<int32_t>(n);
    out = s.make<float>(room * c.width());
    weight_grad = s.make<float>(n);
    grad = s.make<float>(room * c.width(), gradient.data());
    outputs.shared = mpe_matrix{out, c.width()};
    gradients.shared = mpe_matrix{grad, c.width()};
  }
};

}  // namespace replicas
