// Trains on two backends alike, with random settings, and compares every array after every call.
#include "batch.h"

namespace {

using namespace replicas;

class Scenario {
 public:
  Scenario(const mpe_backend* a, const mpe_backend* b, const Options& o)
      : o_(o),
        rng_(o.seed),
        collections_{std::make_unique<Collection>(a, o, o.layout),
                     std::make_unique<Collection>(b, o, o.other_layout)} {
    state("start");
  }

  void run() {
    for (int32_t step = 0; step < o_.steps && g_report.size() < 2000; ++step) {
      name_ = "step " + std::to_string(step) + " ";
      train();
      if (step % 5 == 3) flush();
      if (step % 4 == 2) rows();
    }
    for (const auto& c : collections_) c->check_padding();
  }

 private:
  template <class Get>
  void same(const char* what, int64_t n, Get get) {
    compare(collections_[0]->replica, get(0), collections_[1]->replica, get(1), n, name_ + what);
  }
  template <class Call>
  void both(const char* what, Call call) {
    for (int i = 0; i < 2; ++i) {
      collections_[i]->replica.check(call(i), what);
      collections_[i]->replica.check(collections_[i]->replica.b->synchronize(nullptr), what);
    }
  }
  template <class Call>
  void of_each_batch(const char* what, Call call) {
    both(what, [&](int i) {
      mpe_status status = MPE_OK;
      for (const auto& b : batches_[i]->each) status = status == MPE_OK ? call(i, *b) : status;
      return status;
    });
  }
  const mpe_backend* backend(int i) const { return collections_[i]->replica.b; }
  mpe_group* group(int i) const { return &collections_[i]->group; }

  void train() {
    std::vector<HostBatch> host;
    for (int32_t i = 0; i < o_.batches; ++i) host.push_back(draw());
    for (int i = 0; i < 2; ++i) {
      batches_[i] = std::make_unique<Batches>(*collections_[i], o_, host);
    }
    for (size_t k = 0; k < host.size(); ++k) {
      for (int i = 0; i < 2; ++i) batch_[i] = batches_[i]->each[k].get();
      forward();
    }
    backward();
    state("state after the update");
  }

  void advance() {
    both("advance", [&](int i) { return backend(i)->advance(collections_[i]->step, nullptr); });
  }

  void dedup(int64_t n) {
    both("dedup", [&](int i) {
      return backend(i)->dedup(batch_[i]->l.keys, n,
                               static_cast<uint64_t>(collections_[i]->total_rows()), &batch_[i]->u,
                               nullptr);
    });
  }

  HostBatch draw() {
    HostBatch h{};
    for (int32_t t = 0; t < group(0)->num_tables; ++t) {
      const bool empty = collections_[0]->tables[static_cast<size_t>(t)].num_rows == 0;
      for (int32_t b = 0; b < o_.batch_size; ++b) {
        const int64_t length = static_cast<int64_t>(rng_() % (o_.longest + 1));
        for (int64_t i = 0; i < length && (o_.drop || !empty); ++i) h.indices.push_back(index(t));
        h.offsets.push_back(h.size());
      }
    }
    h.weights.resize(h.indices.size());
    for (float& w : h.weights) w = value();
    const size_t room = std::max<size_t>(h.indices.size(), static_cast<size_t>(o_.batch_size));
    h.gradient.resize(room * static_cast<size_t>(collections_[0]->width()));
    for (float& g : h.gradient) g = rng_() % 40000 == 0 ? 1e38f * 10.0f : value();
    h.weighted = rng_() % 2 == 0;
    h.narrow = rng_() % 2 == 0;
    return h;
  }

  void forward() {
    const int64_t n = batch_[0]->l.n;
    const int64_t bags = static_cast<int64_t>(group(0)->num_tables) * o_.batch_size;
    if (o_.policy < 0) advance();
    both("check_offsets", [&](int i) {
      return backend(i)->check_offsets(&batch_[i]->b, nullptr, batch_[i]->errors);
    });
    both("prepare", [&](int i) {
      return backend(i)->prepare(group(i), &batch_[i]->b, o_.drop, &batch_[i]->l, nullptr,
                                 batch_[i]->errors + 1);
    });
    both("discard", [&](int i) {  // with a cache it also finds the unique rows
      const mpe_share share{group(i), &batch_[i]->l, o_.policy < 0 ? nullptr : &batch_[i]->u};
      return backend(i)->discard(&share, 1, batch_[i]->errors, 2, collections_[i]->sink, nullptr);
    });
    same("keys", n, [&](int i) { return batch_[i]->l.keys; });
    same("bags", n, [&](int i) { return batch_[i]->l.bags; });
    same("bag_offsets", bags + 1, [&](int i) { return batch_[i]->l.bag_offsets; });
    same("origins", group(0)->num_tables, [&](int i) { return batch_[i]->l.origins; });
    same("dropped", group(0)->num_tables, [&](int i) { return batch_[i]->l.dropped; });
    if (o_.policy < 0) dedup(n);
    same("count", 1, [&](int i) { return batch_[i]->u.count; });
    unique_ = collections_[0]->replica.read(batch_[0]->u.count, 1)[0];
    same("unique rows", unique_, [&](int i) { return batch_[i]->u.rows; });
    same("starts", unique_ + 1, [&](int i) { return batch_[i]->u.starts; });
    const int64_t valid = collections_[0]->replica.read(batch_[0]->u.starts + unique_, 1)[0];
    same("positions", valid, [&](int i) { return batch_[i]->u.positions; });
    if (o_.policy >= 0) admit(n);
    both("lookup", [&](int i) {
      const mpe_lookup_args part{group(i), &batch_[i]->l, each(i), &batch_[i]->outputs};
      return backend(i)->lookup(&part, 1, nullptr);
    });
    const int64_t room = n > o_.batch_size ? n : o_.batch_size;
    same("output", room * collections_[0]->width(), [&](int i) { return batch_[i]->out; });
    both("count", [&](int i) {
      return backend(i)->count(group(i), &batch_[i]->l, o_.policy < 0 ? &batch_[i]->u : nullptr,
                               o_.policy < 0 ? 1 : 0, o_.policy < 0 ? 1 : 0, nullptr);
    });
  }

  const int32_t* each(int i) const { return o_.policy >= 0 ? batch_[i]->each : nullptr; }

  void admit(int64_t n) {
    both("cache_admit", [&](int i) {
      return backend(i)->cache_admit(group(i), &batch_[i]->u, n, batch_[i]->l.dropped,
                                     collections_[i]->step, batch_[i]->slots, &batch_[i]->found,
                                     nullptr);
    });
    same("slots", unique_, [&](int i) { return batch_[i]->slots; });
    same("slots before", unique_, [&](int i) { return batch_[i]->found.slots; });
    same("step of the admission", 1, [&](int i) { return batch_[i]->found.step; });
    cache("cache after admission");
    both("cache_refresh", [&](int i) {
      return backend(i)->cache_refresh(group(i), &batch_[i]->u, n, batch_[i]->slots,
                                       batch_[i]->fresh, nullptr);
    });
    same("fresh slots", unique_, [&](int i) { return batch_[i]->fresh; });
    both("cache_locate", [&](int i) {
      return backend(i)->cache_locate(group(i)->cache, batch_[i]->l.keys, n, batch_[i]->each,
                                      nullptr);
    });
    same("located slots", n, [&](int i) { return batch_[i]->each; });
    both("scatter_slots", [&](int i) {
      return backend(i)->scatter_slots(&batch_[i]->u, batch_[i]->fresh, n, batch_[i]->each,
                                       nullptr);
    });
    same("scattered slots", n, [&](int i) { return batch_[i]->each; });
  }

  void backward() {
    if (o_.policy >= 0) refresh();
    of_each_batch("weight_grad", [&](int i, const Batch& b) {
      return backend(i)->weight_grad(group(i), &b.l, o_.policy >= 0 ? b.each : nullptr,
                                     &b.gradients, b.weight_grad, nullptr);
    });
    for (size_t k = 0; k < batches_[0]->each.size(); ++k) {
      same("weight gradient", batches_[0]->each[k]->l.n,
           [&](int i) { return batches_[i]->each[k]->weight_grad; });
    }
    if (o_.optimizer >= 0) update();
    if (o_.policy < 0 || (o_.optimizer >= 0 && single())) return;
    of_each_batch("cache_release", [&](int i, const Batch& b) {
      return backend(i)->cache_release(group(i)->cache, &b.u, b.l.n, b.slots, nullptr);
    });
  }

  // Whose admission's slots the update refreshes itself, as it takes the pins back.
  bool single() const { return batches_[0]->each.size() == 1; }

  // Rows of a batch that another one has cached since are found.
  void refresh() {
    of_each_batch("cache_refresh", [&](int i, const Batch& b) {
      return backend(i)->cache_refresh(group(i), &b.u, b.l.n, b.slots, b.fresh, nullptr);
    });
    of_each_batch("scatter_slots", [&](int i, const Batch& b) {
      return backend(i)->scatter_slots(&b.u, b.fresh, b.l.n, b.each, nullptr);
    });
  }

  void update() {
    const int64_t n = batches_[0]->n;
    both("dedup of all", [&](int i) {
      const uint64_t limit = static_cast<uint64_t>(collections_[i]->total_rows());
      return backend(i)->dedup(batches_[i]->keys, n, limit, &batches_[i]->u, nullptr);
    });
    if (o_.policy >= 0 && !single()) {
      both("cache_refresh of all", [&](int i) {
        return backend(i)->cache_refresh(group(i), &batches_[i]->u, n, batches_[i]->none,
                                         batches_[i]->fresh, nullptr);
      });
    }
    both("begin_update", [&](int i) {
      return backend(i)->begin_update(collections_[i]->step, collections_[i]->parameters,
                                      group(i)->num_tables, collections_[i]->updates,
                                      collections_[i]->coefficients, nullptr);
    });
    same("updates", 1, [&](int i) { return collections_[i]->updates; });
    same("coefficients", group(0)->num_tables * int64_t{MPE_MAX_COEFFICIENTS},
         [&](int i) { return collections_[i]->coefficients; });
    both("update", [&](int i) {
      const auto& gradients = batches_[i]->gradients;
      int32_t* fresh = o_.policy >= 0 ? batches_[i]->fresh : nullptr;
      const bool own = fresh != nullptr && single();
      return backend(i)->update(group(i), gradients.data(), static_cast<int32_t>(gradients.size()),
                                &batches_[i]->u, own ? batches_[i]->each[0]->slots : fresh,
                                own ? fresh : nullptr, own ? &batches_[i]->each[0]->found : nullptr,
                                collections_[i]->nonfinite, nullptr);
    });
    same("nonfinite", 1, [&](int i) { return collections_[i]->nonfinite; });
  }

  void flush() {
    if (o_.policy < 0) return;
    advance();
    both("flush", [&](int i) { return backend(i)->cache_flush(group(i), nullptr); });
    state("state after flush");
  }

  void rows() {
    std::vector<uint64_t> keys;
    for (uint64_t k = rng_() % 3; k < static_cast<uint64_t>(collections_[0]->total_rows());
         k += 1 + rng_() % 7) {
      keys.push_back(k);
    }
    const int64_t n = static_cast<int64_t>(keys.size()), size = n * o_.dim;
    std::vector<float> values(static_cast<size_t>(size));
    for (float& v : values) v = value();
    uint64_t* k[2];
    float *read[2], *write[2];
    for (int i = 0; i < 2; ++i) {
      k[i] = collections_[i]->replica.make<uint64_t>(n, keys.data());
      read[i] = collections_[i]->replica.make<float>(size);
      write[i] = collections_[i]->replica.make<float>(size, values.data());
    }
    both("read_rows",
         [&](int i) { return backend(i)->read_rows(group(i), k[i], n, read[i], nullptr); });
    same("rows read", size, [&](int i) { return read[i]; });
    both("write_rows",
         [&](int i) { return backend(i)->write_rows(group(i), k[i], n, write[i], nullptr); });
    state("state after write_rows");
  }

  void cache(const std::string& what) {
    const std::string before = name_;
    name_ += what + ": ";
    const Collection& c = *collections_[0];
    same("tags", c.slots(), [&](int i) { return collections_[i]->cache.tags; });
    same("meta", c.slots(), [&](int i) { return collections_[i]->cache.meta; });
    same("cache rows", c.slots() * c.slot_floats(),
         [&](int i) { return collections_[i]->cache.rows; });
    if (c.slot_values() > 0) {
      same("cache values", c.slots() * c.slot_values(),
           [&](int i) { return collections_[i]->cache.values; });
    }
    same("counters", 2, [&](int i) { return collections_[i]->cache.counters; });
    same("sketch", MPE_SKETCH_ROWS * c.cache.sketch_width,
         [&](int i) { return collections_[i]->cache.sketch; });
    name_ = before;
  }

  void state(const std::string& what) {
    const std::string before = name_;
    name_ += what + ": ";
    for (int32_t t = 0; t < group(0)->num_tables; ++t) {
      const std::string which = "table " + std::to_string(t);
      const auto at = [&](int i) -> mpe_table& {
        return collections_[i]->tables[static_cast<size_t>(t)];
      };
      for (size_t f = 0; f < collections_[0]->num_fields(); ++f) {
        const auto field = [&](int i) {
          return collections_[i]->read_field(static_cast<size_t>(t), f);
        };
        const std::string part = f == 0 ? " rows" : " state " + std::to_string(f - 1);
        compare(field(0), field(1), name_ + which + part);
      }
      same((which + " stats").c_str(), MPE_NUM_STATS, [&](int i) { return at(i).stats; });
      same((which + " noise").c_str(), MPE_NUM_NOISE_SUMS, [&](int i) { return at(i).noise; });
    }
    name_ = before;
    if (o_.policy >= 0) cache(what);
  }

  int64_t index(int32_t t) {
    const int64_t rows = collections_[0]->tables[static_cast<size_t>(t)].num_rows;
    if (rows == 0 || (o_.drop && rng_() % 20 == 0)) return rng_() % 2 ? rows : -1;
    if (rng_() % 3 == 0)
      return static_cast<int64_t>(rng_() % static_cast<uint64_t>(rows < 3 ? rows : 3));
    return static_cast<int64_t>(rng_() % static_cast<uint64_t>(rows));
  }
  float value() { return static_cast<float>(static_cast<int32_t>(rng_() % 2001) - 1000) * 0.001f; }

  Options o_;
  std::mt19937_64 rng_;
  std::string name_;
  int64_t unique_ = 0;
  std::unique_ptr<Collection> collections_[2];
  std::unique_ptr<Batches> batches_[2];
  Batch* batch_[2];
};

}  // namespace

// Returns an empty text where both backends agree.
extern "C" __attribute__((visibility("default"))) const char* scenario(const mpe_backend* a,
                                                                       const mpe_backend* b,
                                                                       const Options* o) {
  g_report.clear();
  Scenario(a, b, *o).run();
  return g_report.c_str();
}
