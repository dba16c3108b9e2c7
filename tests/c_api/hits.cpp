// A training step whose rows are all cached, on tables whose memory has been overwritten: it reads
// and writes slots alone.
#include "batch.h"

namespace {

using namespace replicas;

class Step {
 public:
  Step(const mpe_backend* backend, const Options& o) : collection(backend, o, o.layout), rng_(1) {
    const std::vector<HostBatch> host{draw_batch(collection, o, rng_)};
    batches = std::make_unique<Batches>(collection, o, host);
    check(b()->advance(collection.step, nullptr), "advance");
    check(b()->check_offsets(&batch().b, nullptr, batch().errors), "check_offsets");
    check(b()->prepare(group(), &batch().b, 0, &batch().l, nullptr, batch().errors + 1), "prepare");
    check(b()->dedup(batch().l.keys, batches->n, static_cast<uint64_t>(collection.total_rows()),
                     &batch().u, nullptr),
          "dedup");
    check(b()->cache_admit(group(), &batch().u, batches->n, nullptr, nullptr, batch().slots,
                           nullptr, nullptr),
          "admit");
    check(b()->scatter_slots(&batch().u, batch().slots, batches->n, batch().each, nullptr),
          "scatter_slots");
    for (const int32_t slot : collection.replica.read(batch().slots, unique())) {
      if (slot < 0) g_report += "a row is not cached\n";
    }
  }

  void run() {
    const mpe_lookup_args part{group(), &batch().l, batch().each, &batch().outputs};
    check(b()->lookup(&part, 1, nullptr), "lookup");
    check(b()->weight_grad(group(), &batch().l, batch().each, &batch().gradients,
                           batch().weight_grad, nullptr),
          "weight_grad");
    check(b()->advance(collection.step, nullptr), "advance");
    check(b()->begin_update(nullptr, collection.parameters, group()->num_tables, collection.updates,
                            collection.coefficients, nullptr),
          "begin_update");
    check(b()->update(group(), batches->gradients.data(), 1, &batch().u, batch().slots, nullptr,
                      nullptr, collection.nonfinite, nullptr),
          "update");
  }

  int64_t unique() { return collection.replica.read(batch().u.count, 1)[0]; }
  Batch& batch() { return *batches->each[0]; }

  Collection collection;
  std::unique_ptr<Batches> batches;

 private:
  const mpe_backend* b() const { return collection.replica.b; }
  const mpe_group* group() const { return &collection.group; }
  void check(mpe_status status, const char* what) {
    collection.replica.check(status, what);
    collection.replica.check(b()->synchronize(nullptr), what);
  }

  std::mt19937_64 rng_;
};

template <class T>
void same(Step& a, Step& b, const char* what, int64_t n, const T* x, const T* y) {
  compare(a.collection.replica, x, b.collection.replica, y, n, what);
}

}  // namespace

// Returns an empty text where the tables were neither read nor written.
extern "C" __attribute__((visibility("default"))) const char* hits(const mpe_backend* backend,
                                                                   const Options* o) {
  g_report.clear();
  Step with(backend, *o), without(backend, *o);
  without.collection.overwrite_rows();
  with.run();
  without.run();
  const Collection &c = with.collection, &d = without.collection;
  const int64_t n = with.batches->n, room = n > o->batch_size ? n : o->batch_size;
  same(with, without, "outputs", room * c.width(), with.batch().out, without.batch().out);
  same(with, without, "weight gradient", n, with.batch().weight_grad, without.batch().weight_grad);
  same(with, without, "slots", c.slots() * c.slot_floats(), c.cache.rows, d.cache.rows);
  same(with, without, "values", c.slots() * c.slot_values(), c.cache.values, d.cache.values);
  same(with, without, "tags", c.slots(), c.cache.tags, d.cache.tags);
  without.collection.check_overwritten();
  return g_report.c_str();
}
