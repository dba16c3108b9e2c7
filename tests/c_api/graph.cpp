// A training step captured in a CUDA graph: its launches leave what the same calls leave on the
// CPU.
#include <cuda_runtime.h>

#include "batch.h"

namespace {

using namespace replicas;

constexpr int kLaunches = 5;

void runtime(cudaError_t error, const char* what) {
  if (error != cudaSuccess) g_report += std::string(what) + ": " + cudaGetErrorName(error) + "\n";
}

// A collection with its batches, and what a C++ program would do with them.
class Trainer {
 public:
  Trainer(const mpe_backend* b, const Options& o, int32_t layout) : c(b, o, layout), o_(o) {
    std::mt19937_64 rng(o.seed);
    std::vector<HostBatch> host;
    for (int32_t i = 0; i < o.batches; ++i) host.push_back(draw_batch(c, o, rng));
    batches = std::make_unique<Batches>(c, o, host);
  }

  // Gives every table another learning rate, in the order of a stream.
  void set_rate(double lr, void* s) {
    for (mpe_parameters& p : c.host_parameters) p.values[0] = lr;
    const int64_t bytes = static_cast<int64_t>(c.tables.size() * sizeof(mpe_parameters));
    check(c.replica.b->copy(c.parameters, c.host_parameters.data(), bytes, s), "copy");
  }

  // Forward of every batch, then one update.
  void step(void* s) {
    const bool cached = o_.policy >= 0;
    for (const auto& batch : batches->each) forward(*batch, s);
    const mpe_backend* d = c.replica.b;
    for (const auto& b : batches->each) {
      check(d->weight_grad(&c.group, &b->l, cached ? b->each : nullptr, &b->gradients,
                           b->weight_grad, s),
            "weight_grad");
    }
    if (o_.optimizer >= 0) update(s);
    for (const auto& b : batches->each) {
      if (cached) check(d->cache_release(&c.cache, &b->u, b->l.n, b->slots, s), "cache_release");
    }
  }

  Collection c;
  std::unique_ptr<Batches> batches;

 private:
  void check(mpe_status status, const char* what) { c.replica.check(status, what); }

  void forward(Batch& b, void* s) {
    const mpe_backend* d = c.replica.b;
    mpe_group* g = &c.group;
    const bool cached = o_.policy >= 0;
    const int64_t n = b.l.n;
    check(d->advance(c.step, s), "advance");
    check(d->prepare(g, &b.b, 0, &b.l, s, b.errors), "prepare");
    const mpe_share share{g, &b.l, &b.u};
    check(d->discard(&share, 1, b.errors, 1, c.sink, s), "discard");
    if (cached) {
      check(d->cache_admit(g, &b.u, n, b.l.dropped, nullptr, b.slots, nullptr, s), "cache_admit");
      check(d->cache_refresh(g, &b.u, n, b.slots, b.fresh, s), "cache_refresh");
      check(d->scatter_slots(&b.u, b.fresh, n, b.each, s), "scatter_slots");
    }
    const mpe_lookup_args part{g, &b.l, cached ? b.each : nullptr, &b.outputs};
    check(d->lookup(&part, 1, s), "lookup");
  }

  void update(void* s) {
    const mpe_backend* d = c.replica.b;
    Batches& all = *batches;
    const uint64_t limit = static_cast<uint64_t>(c.total_rows());
    check(d->dedup(all.keys, all.n, limit, &all.u, s), "dedup");
    if (o_.policy >= 0) {
      check(d->cache_refresh(&c.group, &all.u, all.n, all.none, all.fresh, s), "cache_refresh");
    }
    check(d->begin_update(c.step, c.parameters, c.group.num_tables, c.updates, c.coefficients, s),
          "begin_update");
    check(d->update(&c.group, all.gradients.data(), static_cast<int32_t>(all.gradients.size()),
                    &all.u, o_.policy >= 0 ? all.fresh : nullptr, nullptr, nullptr, c.nonfinite, s),
          "update");
  }

  Options o_;
};

cudaGraphExec_t capture(Trainer& t, void* stream, void* before, void* behind) {
  const mpe_backend* d = t.c.replica.b;
  const cudaStream_t s = static_cast<cudaStream_t>(stream);
  uint64_t number = 7;
  cudaGraph_t graph;
  cudaGraphExec_t exec;
  t.c.replica.check(d->capturing(stream, &number), "capturing");
  if (number != 0) g_report += "a stream is captured before its capture\n";
  runtime(cudaStreamBeginCapture(s, cudaStreamCaptureModeGlobal), "begin");
  t.c.replica.check(d->capturing(stream, &number), "capturing");
  if (number == 0) g_report += "a captured stream has no number\n";
  t.c.replica.check(d->wait_in_graph(before, stream), "wait_in_graph");
  t.step(stream);
  t.c.replica.check(d->record_in_graph(behind, stream), "record_in_graph");
  runtime(cudaStreamEndCapture(s, &graph), "end");
  runtime(cudaGraphInstantiate(&exec, graph, 0), "instantiate");
  runtime(cudaGraphDestroy(graph), "destroy");
  return exec;
}

void compare_all(Trainer& x, Trainer& y, const Options& o) {
  const auto same = [&](auto* a, auto* b, int64_t n, const char* what) {
    compare(x.c.replica, a, y.c.replica, b, n, what);
  };
  for (size_t t = 0; t < x.c.tables.size(); ++t) {
    for (size_t f = 0; f < x.c.num_fields(); ++f) {
      const std::string what = "table " + std::to_string(t) + " field " + std::to_string(f);
      compare(x.c.read_field(t, f), y.c.read_field(t, f), what);
    }
    same(x.c.tables[t].stats, y.c.tables[t].stats, MPE_NUM_STATS, "stats");
    same(x.c.tables[t].noise, y.c.tables[t].noise, MPE_NUM_NOISE_SUMS, "noise");
  }
  same(x.c.step, y.c.step, 1, "step");
  same(x.c.updates, y.c.updates, 1, "updates");
  for (size_t k = 0; k < x.batches->each.size(); ++k) {
    const Batch &a = *x.batches->each[k], &b = *y.batches->each[k];
    same(a.out, b.out, o.batch_size * x.c.width(), "output");
    same(a.weight_grad, b.weight_grad, a.l.n, "weight gradient");
  }
  if (o.policy < 0) return;
  same(x.c.cache.tags, y.c.cache.tags, x.c.slots(), "tags");
  same(x.c.cache.meta, y.c.cache.meta, x.c.slots(), "meta");
  same(x.c.cache.rows, y.c.cache.rows, x.c.slots() * x.c.slot_floats(), "cache rows");
  if (x.c.slot_values() > 0) {
    same(x.c.cache.values, y.c.cache.values, x.c.slots() * x.c.slot_values(), "cache values");
  }
  same(x.c.cache.sketch, y.c.cache.sketch, MPE_SKETCH_ROWS * x.c.cache.sketch_width, "sketch");
}

}  // namespace

// Returns an empty text if `kLaunches` launches are as many steps of the CPU backend.
extern "C" __attribute__((visibility("default"))) const char* launches(const mpe_backend* cpu,
                                                                       const mpe_backend* cuda,
                                                                       const Options* o) {
  g_report.clear();
  Trainer here(cpu, *o, o->layout), there(cuda, *o, o->other_layout);
  Replica& replica = there.c.replica;
  cudaStream_t stream;
  void *before, *behind;
  runtime(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "stream");
  replica.check(cuda->create_event(&before), "create_event");
  replica.check(cuda->create_event(&behind), "create_event");
  const cudaGraphExec_t exec = capture(there, stream, before, behind);
  for (int i = 0; i < kLaunches; ++i) {
    const double lr = 0.1 / (i + 1);
    there.set_rate(lr, nullptr);
    replica.check(cuda->record(before, nullptr), "record");  // the launch waits for it
    runtime(cudaGraphLaunch(exec, stream), "launch");
    replica.check(cuda->wait(behind, nullptr), "wait");  // and the next copy for the launch
    here.set_rate(lr, nullptr);
    here.step(nullptr);
  }
  replica.check(cuda->synchronize(nullptr), "synchronize");
  compare_all(here, there, *o);
  runtime(cudaGraphExecDestroy(exec), "destroy");
  cuda->destroy_event(before);
  cuda->destroy_event(behind);
  runtime(cudaStreamDestroy(stream), "stream");
  return g_report.c_str();
}
