// Trains on two backends alike, with random settings, and compares every array after every call.
#include <algorithm>

#include "replica.h"

namespace {

using namespace replicas;

class Scenario {
 public:
  Scenario(const mpe_backend* a, const mpe_backend* b, const Options& o)
      : o_(o),
        rng_(o.seed),
        collections_{std::make_unique<Collection>(a, o), std::make_unique<Collection>(b, o)} {
    state("start");
  }

  void run() {
    for (int32_t step = 0; step < o_.steps && g_report.size() < 2000; ++step) {
      name_ = "step " + std::to_string(step) + " ";
      train();
      if (step % 5 == 3) flush();
      if (step % 4 == 2) rows();
    }
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
  const mpe_backend* backend(int i) const { return collections_[i]->replica.b; }
  mpe_group* group(int i) const { return &collections_[i]->group; }

  void train() {
    const int32_t tables = group(0)->num_tables;
    std::vector<int64_t> indices, offsets{0};
    for (int32_t t = 0; t < tables; ++t) {
      for (int32_t b = 0; b < o_.batch_size; ++b) {
        const int64_t length = static_cast<int64_t>(rng_() % (o_.longest + 1));
        for (int64_t i = 0; i < length; ++i) indices.push_back(index(t));
        offsets.push_back(static_cast<int64_t>(indices.size()));
      }
    }
    std::vector<float> weights(indices.size());
    for (float& w : weights) w = value();
    const size_t room = std::max<size_t>(indices.size(), static_cast<size_t>(o_.batch_size));
    std::vector<float> gradient(room * static_cast<size_t>(collections_[0]->width()));
    for (float& g : gradient) g = rng_() % 40000 == 0 ? 1e38f * 10.0f : value();
    const bool weighted = rng_() % 2 == 0, narrow = rng_() % 2 == 0;
    for (int i = 0; i < 2; ++i) {
      batch_[i] = std::make_unique<Batch>(*collections_[i], o_, indices, offsets, weights, gradient,
                                          weighted, narrow);
    }
    forward();
    backward();
    state("state after the update");
  }

  void forward() {
    const int64_t n = batch_[0]->l.n;
    const int64_t bags = static_cast<int64_t>(group(0)->num_tables) * o_.batch_size;
    both("advance", [&](int i) { return backend(i)->advance(collections_[i]->step, nullptr); });
    both("check_offsets", [&](int i) {
      return backend(i)->check_offsets(&batch_[i]->b, nullptr, batch_[i]->errors);
    });
    both("prepare", [&](int i) {
      return backend(i)->prepare(group(i), &batch_[i]->b, o_.drop, batch_[i]->errors, &batch_[i]->l,
                                 nullptr, batch_[i]->errors + 1);
    });
    both("discard", [&](int i) {
      return backend(i)->discard(group(i), &batch_[i]->l, batch_[i]->errors, 2,
                                 collections_[i]->sink, nullptr);
    });
    same("keys", n, [&](int i) { return batch_[i]->l.keys; });
    same("bags", n, [&](int i) { return batch_[i]->l.bags; });
    same("bag_offsets", bags + 1, [&](int i) { return batch_[i]->l.bag_offsets; });
    same("origins", group(0)->num_tables, [&](int i) { return batch_[i]->l.origins; });
    same("dropped", group(0)->num_tables, [&](int i) { return batch_[i]->l.dropped; });
    both("dedup", [&](int i) {
      return backend(i)->dedup(batch_[i]->l.keys, n,
                               static_cast<uint64_t>(collections_[i]->total_rows()), &batch_[i]->u,
                               nullptr);
    });
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
                               o_.policy < 0 ? 1 : 0, 1, nullptr);
    });
  }

  const int32_t* each(int i) const { return o_.policy >= 0 ? batch_[i]->each : nullptr; }

  void admit(int64_t n) {
    both("cache_admit", [&](int i) {
      return backend(i)->cache_admit(group(i), &batch_[i]->u, n, batch_[i]->slots, nullptr);
    });
    same("slots", unique_, [&](int i) { return batch_[i]->slots; });
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
    const int64_t n = batch_[0]->l.n;
    both("advance", [&](int i) { return backend(i)->advance(collections_[i]->step, nullptr); });
    both("weight_grad", [&](int i) {
      return backend(i)->weight_grad(group(i), &batch_[i]->l, each(i), &batch_[i]->gradients,
                                     batch_[i]->weight_grad, nullptr);
    });
    same("weight gradient", n, [&](int i) { return batch_[i]->weight_grad; });
    const mpe_optimizer optimizer{o_.optimizer, o_.decay, 0.05f, 1e-8f, 0.01f, nullptr};
    both("update", [&](int i) {
      return backend(i)->update(group(i), &optimizer, &batch_[i]->l, &batch_[i]->u,
                                o_.policy >= 0 ? batch_[i]->fresh : nullptr, &batch_[i]->gradients,
                                collections_[i]->nonfinite, nullptr);
    });
    same("nonfinite", 1, [&](int i) { return collections_[i]->nonfinite; });
    if (o_.policy < 0) return;
    both("cache_release", [&](int i) {
      return backend(i)->cache_release(group(i)->cache, &batch_[i]->u, n, batch_[i]->slots,
                                       nullptr);
    });
  }

  void flush() {
    if (o_.policy < 0) return;
    both("advance", [&](int i) { return backend(i)->advance(collections_[i]->step, nullptr); });
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
    same("cache rows", c.slots() * o_.dim, [&](int i) { return collections_[i]->cache.rows; });
    same("counters", 2, [&](int i) { return collections_[i]->cache.counters; });
    same("sketch", MPE_SKETCH_ROWS * c.cache.sketch_width,
         [&](int i) { return collections_[i]->cache.sketch; });
    name_ = before;
  }

  void state(const std::string& what) {
    const std::string before = name_;
    name_ += what + ": ";
    for (int32_t t = 0; t < group(0)->num_tables; ++t) {
      const mpe_table& table = collections_[0]->tables[static_cast<size_t>(t)];
      const auto at = [&](int i) -> mpe_table& {
        return collections_[i]->tables[static_cast<size_t>(t)];
      };
      const std::string which = "table " + std::to_string(t);
      same((which + " rows").c_str(), table.num_rows * mpe_row_bytes(table.precision, o_.dim),
           [&](int i) { return at(i).rows; });
      same((which + " state").c_str(), table.num_rows * o_.dim,
           [&](int i) { return static_cast<float*>(at(i).state); });
      same((which + " stats").c_str(), MPE_NUM_STATS, [&](int i) { return at(i).stats; });
    }
    name_ = before;
    if (o_.policy >= 0) cache(what);
  }

  int64_t index(int32_t t) {
    const int64_t rows = collections_[0]->tables[static_cast<size_t>(t)].num_rows;
    if (o_.drop && rng_() % 20 == 0) return rng_() % 2 ? rows : -1;
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
  std::unique_ptr<Batch> batch_[2];
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
