// A batch on a backend, with what its kernels write, and several batches as one update.
#pragma once

#include <memory>

#include "collection.h"

namespace replicas {

// What a caller passes, in host memory.
struct HostBatch {
  std::vector<int64_t> indices, offsets{0};
  std::vector<float> weights, gradient;
  bool weighted, narrow;  // with per-sample weights; with 32-bit indices

  int64_t size() const { return static_cast<int64_t>(indices.size()); }
};

// Bags of rows that are all in range.
inline HostBatch draw_batch(const Collection& c, const Options& o, std::mt19937_64& rng) {
  HostBatch h{};
  for (const mpe_table& t : c.tables) {
    for (int32_t bag = 0; bag < o.batch_size; ++bag) {
      const uint64_t length = rng() % (static_cast<uint64_t>(o.longest) + 1);
      for (uint64_t i = t.num_rows > 0 ? length : 0; i > 0; --i) {
        h.indices.push_back(static_cast<int64_t>(rng() % static_cast<uint64_t>(t.num_rows)));
      }
      h.offsets.push_back(h.size());
    }
  }
  const size_t room = std::max(h.indices.size(), static_cast<size_t>(o.batch_size));
  h.weights.resize(h.indices.size());
  h.gradient.resize(room * static_cast<size_t>(c.width()));
  for (float& w : h.weights) w = static_cast<float>(rng() % 100) * 0.01f;
  for (float& g : h.gradient) g = static_cast<float>(rng() % 100) * 0.01f - 0.5f;
  h.weighted = true;
  return h;
}

// What a batch leaves behind on one replica.
struct Batch {
  mpe_batch b{};
  mpe_lookups l{};
  mpe_unique u{};
  mpe_error* errors;
  int32_t *slots, *fresh, *each;
  mpe_found found;
  float *out, *weight_grad, *grad;
  mpe_outputs outputs{}, gradients{};

  // keys: room for those of its lookups.
  Batch(Collection& c, const Options& o, const HostBatch& h, uint64_t* keys) {
    Replica& s = c.replica;
    const int64_t n = h.size(), rows = o.batch_size;
    const int64_t room = n > rows ? n : rows, tables = c.group.num_tables;
    if (h.narrow) {
      const std::vector<int32_t> i32(h.indices.begin(), h.indices.end());
      b.indices = s.make<int32_t>(n + 1, nullptr);
      s.check(s.b->copy(const_cast<void*>(b.indices), i32.data(), n * 4, nullptr), "copy");
      s.check(s.b->synchronize(nullptr), "synchronize");
    } else {
      b.indices = s.make<int64_t>(n, h.indices.data());
    }
    b.index_bits = h.narrow ? 32 : 64;
    b.offsets = s.make<int64_t>(static_cast<int64_t>(h.offsets.size()), h.offsets.data());
    b.offset_bits = 64;
    b.weights = h.weighted ? s.make<float>(n, h.weights.data()) : nullptr;
    b.num_indices = n;
    b.batch_size = o.batch_size;
    b.num_features = c.group.num_tables;
    l.n = n;
    l.batch_size = o.batch_size;
    l.keys = keys;
    l.bags = s.make<int32_t>(n);
    l.bag_offsets = s.make<int64_t>(tables * o.batch_size + 1);
    l.origins = s.make<int64_t>(tables);
    l.dropped = s.make<int64_t>(tables);
    l.weights = h.weighted ? s.make<float>(n) : nullptr;
    u = make_unique(s, n);
    const mpe_error none[2] = {kNoError, kNoError};
    errors = s.make<mpe_error>(2, none);
    slots = s.make<int32_t>(n);
    fresh = s.make<int32_t>(n);
    each = s.make<int32_t>(n);
    found = {s.make<int32_t>(n), s.make<uint64_t>(1)};
    out = s.make<float>(room * c.width());
    weight_grad = s.make<float>(n);
    grad = s.make<float>(room * c.width(), h.gradient.data());
    outputs.shared = mpe_matrix{out, c.width()};
    gradients.shared = mpe_matrix{grad, c.width()};
  }
};

// Batches that become one update, with their keys one after the other, the unique ones of all of
// these, and the slots of those.
struct Batches {
  int64_t n = 0;
  uint64_t* keys;
  mpe_unique u{};
  int32_t *none, *fresh;
  std::vector<std::unique_ptr<Batch>> each;
  std::vector<mpe_gradient> gradients;

  Batches(Collection& c, const Options& o, const std::vector<HostBatch>& host) {
    Replica& s = c.replica;
    for (const HostBatch& h : host) n += h.size();
    keys = s.make<uint64_t>(n);
    int64_t first = 0;
    for (const HostBatch& h : host) {
      each.push_back(std::make_unique<Batch>(c, o, h, keys + first));
      gradients.push_back({&each.back()->l, &each.back()->gradients});
      first += h.size();
    }
    u = make_unique(s, n);
    none = s.make<int32_t>(n);
    fresh = s.make<int32_t>(n);
    s.check(s.b->fill(none, 0xFF, n * 4, nullptr), "fill");
    s.check(s.b->synchronize(nullptr), "synchronize");
  }
};

}  // namespace replicas
