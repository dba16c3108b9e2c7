// One lookup of many groups gives what a lookup of each gives, on two backends.
#include "batch.h"

namespace {

using namespace replicas;

// More of them have aligned rows than one launch serves.
constexpr int32_t kDims[] = {8, 3, 64, 20, 9, 16, 300, 24, 4, 32, 40, 48, 12};
constexpr size_t kGroups = sizeof kDims / sizeof *kDims;

// A group, its batch and the slots of that.
struct Share {
  Collection c;
  std::unique_ptr<Batches> batches;
  Batch* batch;
  mpe_lookup_args part;
  int64_t size;  // of the output

  Share(const mpe_backend* b, const Options& o) : c(b, o, o.layout) {
    std::mt19937_64 rng(o.seed);
    HostBatch host = draw_batch(c, o, rng);
    host.weighted = o.seed % 2 == 0;
    size = static_cast<int64_t>(host.gradient.size());
    batches = std::make_unique<Batches>(c, o, std::vector<HostBatch>{host});
    batch = batches->each[0].get();
    part = {&c.group, &batch->l, o.policy >= 0 ? batch->each : nullptr, &batch->outputs};
    prepare(o.policy >= 0);
  }

  std::vector<float> out() { return c.replica.read(batch->out, size); }

 private:
  void prepare(bool cached) {
    const mpe_backend* d = c.replica.b;
    Batch& b = *batch;
    const uint64_t limit = static_cast<uint64_t>(c.total_rows());
    c.replica.check(d->check_offsets(&b.b, nullptr, b.errors), "check_offsets");
    c.replica.check(d->prepare(&c.group, &b.b, 0, &b.l, nullptr, b.errors + 1), "prepare");
    if (!cached) return;
    c.replica.check(d->dedup(b.l.keys, b.l.n, limit, &b.u, nullptr), "dedup");
    c.replica.check(
        d->cache_admit(&c.group, &b.u, b.l.n, nullptr, nullptr, b.slots, nullptr, nullptr),
        "cache_admit");
    c.replica.check(d->cache_locate(&c.cache, b.l.keys, b.l.n, b.each, nullptr), "cache_locate");
  }
};

// Which formats groups have, by the seed: all, one for all groups, or each its own.
int32_t format_of(uint64_t seed, size_t group) {
  if (seed % 3 == 0) return -1;
  return static_cast<int32_t>((seed / 3 + (seed % 3 == 1 ? 0 : group)) % MPE_NUM_FORMATS);
}

class Groups {
 public:
  Groups(const mpe_backend* backend, const Options& o) : replica_(backend) {
    for (size_t i = 0; i < kGroups; ++i) {
      Options own = o;
      own.dim = kDims[i];
      own.format = format_of(o.seed, i);
      own.seed = o.seed + 2 * i;  // all have weights, or none has
      shares_.push_back(std::make_unique<Share>(backend, own));
      parts_.push_back(shares_.back()->part);
    }
  }

  // The outputs of calls for so many groups at a time.
  std::vector<std::vector<float>> run(size_t at_once) {
    for (const auto& s : shares_) {
      replica_.check(replica_.b->fill(s->batch->out, 0xFF, s->size * 4, nullptr), "fill");
    }
    for (size_t i = 0; i < kGroups; i += at_once) {
      const int32_t n = static_cast<int32_t>(std::min(at_once, kGroups - i));
      replica_.check(replica_.b->lookup(parts_.data() + i, n, nullptr), "lookup");
    }
    std::vector<std::vector<float>> all;
    for (const auto& s : shares_) all.push_back(s->out());
    return all;
  }

 private:
  Replica replica_;
  std::vector<std::unique_ptr<Share>> shares_;
  std::vector<mpe_lookup_args> parts_;
};

void compare_all(const std::vector<std::vector<float>>& x, const std::vector<std::vector<float>>& y,
                 const std::string& what) {
  for (size_t i = 0; i < kGroups; ++i) {
    if (memcmp(x[i].data(), y[i].data(), x[i].size() * sizeof(float)) == 0) continue;
    g_report += what + ": the outputs of dimension " + std::to_string(kDims[i]) + " differ\n";
  }
}

}  // namespace

// Returns an empty text if both backends give the same, however many groups a call has.
extern "C" __attribute__((visibility("default"))) const char* groups(const mpe_backend* a,
                                                                     const mpe_backend* b,
                                                                     const Options* o) {
  g_report.clear();
  Groups first(a, *o), second(b, *o);
  const std::vector<std::vector<float>> expected = first.run(1);
  for (const size_t at_once : {size_t{1}, size_t{3}, kGroups}) {
    const std::string what = std::to_string(at_once) + " groups at once, ";
    compare_all(expected, first.run(at_once), what + a->name);
    compare_all(expected, second.run(at_once), what + b->name);
  }
  return g_report.c_str();
}
