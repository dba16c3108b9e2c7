// A training step captured in a CUDA graph: its launches leave what the same calls leave on the
// CPU.
#include <cuda_runtime.h>

#include <algorithm>

#include "replica.h"

namespace {

using namespace replicas;

constexpr int kLaunches = 5;

void runtime(cudaError_t error, const char* what) {
  if (error != cudaSuccess) g_report += std::string(what) + ": " + cudaGetErrorName(error) + "\n";
}

// A collection with one batch, and what a C++ program would do with it.
class Trainer {
 public:
  Trainer(const mpe_backend* b, const Options& o) : c(b, o), o_(o) {
    std::mt19937_64 rng(o.seed);
    std::vector<int64_t> indices, offsets;
    draw_bags(c, o, rng, &indices, &offsets);
    const size_t room = std::max(indices.size(), static_cast<size_t>(o.batch_size));
    std::vector<float> weights(indices.size()), grad(room * static_cast<size_t>(c.width()));
    for (float& w : weights) w = static_cast<float>(rng() % 100) * 0.01f;
    for (float& g : grad) g = static_cast<float>(rng() % 100) * 0.01f - 0.5f;
    batch = std::make_unique<Batch>(c, o, indices, offsets, weights, grad, true, false);
    lr = c.replica.make<float>(1);
  }

  // Forward and backward, with a learning rate of the host's or of the device's.
  void step(float host_lr, const float* device_lr, void* s) {
    const mpe_backend* d = c.replica.b;
    mpe_group* g = &c.group;
    Batch& b = *batch;
    const bool cached = o_.policy >= 0;
    const int64_t n = b.l.n;
    const int32_t* each = cached ? b.each : nullptr;
    const auto check = [&](mpe_status status, const char* what) { c.replica.check(status, what); };
    check(d->advance(c.step, s), "advance");
    check(d->check_offsets(&b.b, s, b.errors), "check_offsets");
    check(d->prepare(g, &b.b, 0, b.errors, &b.l, s, b.errors + 1), "prepare");
    check(d->discard(g, &b.l, b.errors, 2, c.sink, s), "discard");
    const uint64_t limit = static_cast<uint64_t>(c.total_rows());
    check(d->dedup(b.l.keys, n, limit, &b.u, s), "dedup");
    if (cached) {
      check(d->cache_admit(g, &b.u, n, b.slots, s), "cache_admit");
      check(d->cache_refresh(g, &b.u, n, b.slots, b.fresh, s), "cache_refresh");
      check(d->scatter_slots(&b.u, b.fresh, n, b.each, s), "scatter_slots");
    }
    const mpe_lookup_args part{g, &b.l, each, &b.outputs};
    check(d->lookup(&part, 1, s), "lookup");
    check(d->advance(c.step, s), "advance");
    check(d->weight_grad(g, &b.l, each, &b.gradients, b.weight_grad, s), "weight_grad");
    const mpe_optimizer optimizer{o_.optimizer, o_.decay, host_lr, 1e-8f, 0.01f, device_lr};
    check(d->update(g, &optimizer, &b.l, &b.u, cached ? b.fresh : nullptr, &b.gradients,
                    c.nonfinite, s),
          "update");
    if (cached) check(d->cache_release(g->cache, &b.u, n, b.slots, s), "cache_release");
  }

  Collection c;
  std::unique_ptr<Batch> batch;
  float* lr;

 private:
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
  t.step(0.0f, t.lr, stream);
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
    const mpe_table &a = x.c.tables[t], &b = y.c.tables[t];
    same(a.rows, b.rows, a.num_rows * mpe_row_bytes(a.precision, o.dim), "rows");
    same(static_cast<float*>(a.state), static_cast<float*>(b.state), a.num_rows * o.dim, "state");
    same(a.stats, b.stats, MPE_NUM_STATS, "stats");
  }
  same(x.c.step, y.c.step, 1, "step");
  same(x.batch->out, y.batch->out, o.batch_size * x.c.width(), "output");
  same(x.batch->weight_grad, y.batch->weight_grad, x.batch->l.n, "weight gradient");
  if (o.policy < 0) return;
  same(x.c.cache.tags, y.c.cache.tags, x.c.slots(), "tags");
  same(x.c.cache.meta, y.c.cache.meta, x.c.slots(), "meta");
  same(x.c.cache.rows, y.c.cache.rows, x.c.slots() * o.dim, "cache rows");
  same(x.c.cache.sketch, y.c.cache.sketch, MPE_SKETCH_ROWS * x.c.cache.sketch_width, "sketch");
}

}  // namespace

// Returns an empty text if `kLaunches` launches are as many steps of the CPU backend.
extern "C" __attribute__((visibility("default"))) const char* launches(const mpe_backend* cpu,
                                                                       const mpe_backend* cuda,
                                                                       const Options* o) {
  g_report.clear();
  Trainer here(cpu, *o), there(cuda, *o);
  Replica& replica = there.c.replica;
  cudaStream_t stream;
  void *before, *behind;
  runtime(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "stream");
  replica.check(cuda->create_event(&before), "create_event");
  replica.check(cuda->create_event(&behind), "create_event");
  const cudaGraphExec_t exec = capture(there, stream, before, behind);
  for (int i = 0; i < kLaunches; ++i) {
    const float lr = 0.1f / static_cast<float>(i + 1);
    replica.check(cuda->copy(there.lr, &lr, sizeof lr, nullptr), "copy");
    replica.check(cuda->record(before, nullptr), "record");  // the launch waits for it
    runtime(cudaGraphLaunch(exec, stream), "launch");
    replica.check(cuda->wait(behind, nullptr), "wait");  // and the next copy for the launch
    here.step(lr, nullptr, nullptr);
  }
  replica.check(cuda->synchronize(nullptr), "synchronize");
  compare_all(here, there, *o);
  runtime(cudaGraphExecDestroy(exec), "destroy");
  cuda->destroy_event(before);
  cuda->destroy_event(behind);
  runtime(cudaStreamDestroy(stream), "stream");
  return g_report.c_str();
}
