// The training step written out with the functions of a backend, as plainly as possible: what the
// step of the library is compared with.
#pragma once

#include "world.h"

namespace step_tests {

struct PlainShare {
  mpe_lookups lookups{};
  mpe_unique unique{};
  int32_t *slots, *fresh, *each;
  mpe_outputs out{}, grad{};
};

class PlainBatch {
 public:
  PlainBatch(World& w, const Sample& sample) : w_(w), sample_(sample) {
    const std::vector<mpe_error> none(1 + kGroups, kNoError);
    mpe_error* errors = w.replica.make<mpe_error>(1 + kGroups, none.data());
    check(b().check_offsets(&sample.batch, nullptr, errors), "check_offsets");
    for (int32_t g = 0; g < kGroups; ++g) prepare(g, errors);
    if (std::string(b().name) == "cpu") return;
    std::vector<mpe_share> all;
    for (int32_t g = 0; g < kGroups; ++g)
      all.push_back({&w.groups[g], &shares[g].lookups, nullptr});
    check(b().discard(all.data(), kGroups, errors, 1 + kGroups, w.errors, nullptr), "discard");
  }

  void admit() {
    admitted_ = true;
    for (int32_t g = 0; g < kGroups; ++g) {
      PlainShare& s = shares[g];
      const uint64_t limit = static_cast<uint64_t>(w_.total_rows(g));
      check(b().dedup(s.lookups.keys, s.lookups.n, limit, &s.unique, nullptr), "dedup");
      if (!cached(g)) continue;
      check(b().cache_admit(&w_.groups[g], &s.unique, s.lookups.n, nullptr, nullptr, s.slots,
                            nullptr, nullptr),
            "admit");
      check(b().count(&w_.groups[g], &s.lookups, nullptr, 0, 1, nullptr), "count");
    }
  }

  void forward() {
    advance(w_);
    if (!admitted_) admit();
    for (int32_t g = 0; g < kGroups; ++g) {
      if (cached(g)) find_slots(g);
      look_up(g);
      if (!cached(g)) {
        check(b().count(&w_.groups[g], &shares[g].lookups, nullptr, 1, 1, nullptr), "count");
      }
    }
  }

  void evaluate() {
    for (int32_t g = 0; g < kGroups; ++g) {
      PlainShare& s = shares[g];
      if (cached(g)) {
        check(b().cache_locate(&w_.caches[g], s.lookups.keys, s.lookups.n, s.each, nullptr),
              "locate");
      }
      look_up(g);
    }
  }

  void weight_grad() {
    if (sample_.batch.weights == nullptr) return;
    for (int32_t g = 0; g < kGroups; ++g) {
      PlainShare& s = shares[g];
      if (cached(g)) find_slots(g);
      check(b().weight_grad(&w_.groups[g], &s.lookups, cached(g) ? s.each : nullptr, &s.grad,
                            sample_.weight_grad, nullptr),
            "weight_grad");
    }
  }

  void release() {
    for (int32_t g = 0; g < kGroups; ++g) {
      if (!cached(g) || !admitted_) continue;
      const PlainShare& s = shares[g];
      check(b().cache_release(&w_.caches[g], &s.unique, s.lookups.n, s.slots, nullptr), "release");
    }
  }

  static void advance(World& w) {
    w.replica.check(w.c.backend->advance(w.step, nullptr), "advance");
  }

  PlainShare shares[kGroups];

 private:
  const mpe_backend& b() const { return *w_.c.backend; }
  bool cached(int32_t g) const { return w_.groups[g].cache != nullptr; }
  void check(mpe_status status, const char* what) { w_.replica.check(status, what); }

  void prepare(int32_t g, mpe_error* errors) {
    Replica& r = w_.replica;
    PlainShare& s = shares[g];
    const int64_t n = sample_.batch.num_indices, bags = sample_.batch.batch_size;
    const int64_t tables = w_.groups[g].num_tables;
    s.lookups = mpe_lookups{n,
                            bags,
                            r.make<uint64_t>(n),
                            r.make<int32_t>(n),
                            r.make<int64_t>(tables * bags + 1),
                            r.make<int64_t>(tables),
                            r.make<int64_t>(tables),
                            sample_.batch.weights == nullptr ? nullptr : r.make<float>(n)};
    s.unique = make_unique(r, n);
    s.slots = r.make<int32_t>(n);
    s.fresh = r.make<int32_t>(n);
    s.each = r.make<int32_t>(n);
    check(
        b().prepare(&w_.groups[g], &sample_.batch, w_.c.drop, &s.lookups, nullptr, errors + 1 + g),
        "prepare");
    // On the CPU n is the number of lookups, of which the batch's is only the room.
    if (std::string(b().name) == "cpu") s.lookups.n = s.lookups.bag_offsets[tables * bags];
    s.out = outputs(g, sample_.outputs);
    s.grad = outputs(g, sample_.gradients);
  }

  mpe_outputs outputs(int32_t g, const mpe_results& results) {
    if (results.tables == nullptr) return mpe_outputs{results.shared, nullptr, results.format};
    std::vector<mpe_matrix> tables;
    for (int32_t t = 0; t < w_.groups[g].num_tables; ++t) {
      tables.push_back(results.tables[w_.groups[g].tables[t].feature]);
    }
    const int64_t n = static_cast<int64_t>(tables.size());
    return mpe_outputs{{}, w_.replica.make<mpe_matrix>(n, tables.data()), results.format};
  }

  void find_slots(int32_t g) {
    PlainShare& s = shares[g];
    check(b().cache_refresh(&w_.groups[g], &s.unique, s.lookups.n, s.slots, s.fresh, nullptr),
          "refresh");
    check(b().scatter_slots(&s.unique, s.fresh, s.lookups.n, s.each, nullptr), "scatter");
  }

  void look_up(int32_t g) {
    PlainShare& s = shares[g];
    const mpe_lookup_args part{&w_.groups[g], &s.lookups, cached(g) ? s.each : nullptr, &s.out};
    check(b().lookup(&part, 1, nullptr), "lookup");
  }

  World& w_;
  const Sample& sample_;
  bool admitted_ = false;
};

// One update from several batches.
inline void plain_backward(World& w, const std::vector<PlainBatch*>& batches) {
  const mpe_backend& b = *w.c.backend;
  Replica& r = w.replica;
  for (PlainBatch* batch : batches) batch->weight_grad();
  PlainBatch::advance(w);
  r.check(b.begin_update(nullptr, w.c.parameters, kTables, w.updates, w.coefficients, nullptr),
          "begin");
  for (int32_t g = 0; g < kGroups; ++g) {
    if (w.groups[g].optimizer == nullptr) continue;
    std::vector<uint64_t> keys;
    std::vector<mpe_gradient> gradients;
    for (PlainBatch* batch : batches) {
      const PlainShare& s = batch->shares[g];
      const std::vector<uint64_t> own = r.read(s.lookups.keys, s.lookups.n);
      keys.insert(keys.end(), own.begin(), own.end());
      gradients.push_back(mpe_gradient{&s.lookups, &s.grad});
    }
    const int64_t n = static_cast<int64_t>(keys.size());
    mpe_unique found = make_unique(r, n);
    r.check(b.dedup(r.make<uint64_t>(n, keys.data()), n, static_cast<uint64_t>(w.total_rows(g)),
                    &found, nullptr),
            "dedup");
    const int64_t count = r.read(found.count, 1)[0];
    int32_t* slots = nullptr;
    if (w.groups[g].cache != nullptr) {
      slots = r.make<int32_t>(n);
      r.check(b.cache_locate(&w.caches[g], found.rows, count, slots, nullptr), "locate");
    }
    r.check(b.update(&w.groups[g], gradients.data(), static_cast<int32_t>(gradients.size()), &found,
                     slots, nullptr, nullptr, w.errors + 1 + g, nullptr),
            "update");
    if (slots == nullptr) {
      r.check(b.count(&w.groups[g], gradients[0].lookups, &found, 0, 0, nullptr), "count");
    }
  }
  for (PlainBatch* batch : batches) batch->release();
}

}  // namespace step_tests
