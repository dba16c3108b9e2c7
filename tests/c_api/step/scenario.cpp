// The library's step and the plain one do the same with random batches, several of them open.
#include "plain.h"

namespace {

using namespace step_tests;

struct Open {
  Sample mine, plain;
  mpe_open_batch* open = nullptr;
  std::unique_ptr<PlainBatch> batch;
  bool forwarded = false;

  Open(World& a, World& b, uint64_t seed) : mine(a, seed, a.c.drop), plain(b, seed, a.c.drop) {}
};

class Scenario {
 public:
  Scenario(const mpe_backend* backend, uint64_t seed)
      : rng_(seed), a_(backend, seed, seed % 3 == 0), b_(backend, seed, seed % 3 == 0) {}
  ~Scenario() {
    for (auto& open : open_) free(*open);
  }

  void run() {
    for (int32_t i = 0; i < 40 && g_report.size() < 1000; ++i) {
      name_ = "call " + std::to_string(i);
      one();
      compare_states(a_, b_, name_);
    }
  }

 private:
  uint64_t draw(uint64_t n) { return rng_() % n; }
  void check(mpe_status status, const char* what) { a_.replica.check(status, what); }
  void synchronize() { check(a_.c.backend->synchronize(nullptr), "synchronize"); }

  void one() {
    switch (draw(7)) {
      case 0:
        open();
        prefetch();
        return;
      case 1:
      case 2:
        open();
        forward(*open_.back());
        return;
      case 3:
        if (!open_.empty()) forward(*open_[draw(open_.size())]);
        return;
      case 4:
        evaluate();
        return;
      case 5:
        flush();
        return;
      default:
        backward();
    }
  }

  void open() {
    open_.push_back(std::make_unique<Open>(a_, b_, rng_()));
    Open& o = *open_.back();
    mpe_error error;
    check(mpe_open(&a_.c, &o.mine.batch, nullptr, &o.open, &error), "open");
    o.batch = std::make_unique<PlainBatch>(b_, o.plain);
  }

  void prefetch() {
    name_ += " prefetch";
    check(mpe_admit(open_.back()->open, nullptr), "admit");
    PlainBatch::advance(b_);
    open_.back()->batch->admit();
  }

  void forward(Open& o) {
    name_ += " forward";
    Open* replaced = nullptr;
    if (draw(3) == 0 && open_.front().get() != &o) replaced = open_.front().get();
    check(mpe_forward(o.open, replaced == nullptr ? nullptr : replaced->open, &o.mine.outputs,
                      nullptr),
          "forward");
    if (replaced != nullptr) replaced->batch->release();
    o.batch->forward();
    synchronize();
    same(o.mine.out, o.plain.out, o.mine.size, " output");
    o.forwarded = true;
    if (replaced != nullptr) {
      free(*replaced);
      open_.erase(open_.begin());
    }
  }

  void evaluate() {
    name_ += " evaluation";
    open();
    Open& o = *open_.back();
    check(mpe_evaluate(o.open, &o.mine.outputs, nullptr), "evaluate");
    o.batch->evaluate();
    synchronize();
    same(o.mine.out, o.plain.out, o.mine.size, " output");
    if (o.mine.weight_grad != nullptr) {
      check(mpe_weight_grad(o.open, &o.mine.gradients, o.mine.weight_grad, nullptr), "weights");
    }
    free(o);
    open_.pop_back();
  }

  void flush() {
    name_ += " flush";
    check(mpe_flush(&a_.c, nullptr), "flush");
    PlainBatch::advance(b_);
    for (int32_t g = 0; g < kGroups; ++g) {
      if (b_.groups[g].cache == nullptr) continue;
      b_.replica.check(b_.c.backend->cache_flush(&b_.groups[g], nullptr), "cache_flush");
    }
  }

  void backward() {
    name_ += " backward";
    std::vector<mpe_batch_gradient> mine;
    std::vector<PlainBatch*> plain;
    std::vector<Open*> used;
    const size_t most = 1 + draw(3);
    for (auto& o : open_) {
      if (!o->forwarded || used.size() == most) continue;
      mine.push_back(mpe_batch_gradient{o->open, o->mine.gradients, o->mine.weight_grad});
      plain.push_back(o->batch.get());
      used.push_back(o.get());
    }
    if (used.empty()) return;
    check(mpe_backward(&a_.c, mine.data(), static_cast<int32_t>(mine.size()), nullptr), "backward");
    plain_backward(b_, plain);
    synchronize();
    for (Open* o : used) {
      if (o->mine.weight_grad != nullptr) {
        same(o->mine.weight_grad, o->plain.weight_grad, o->mine.batch.num_indices, " weights");
      }
      mpe_batch_info info;
      mpe_describe_batch(o->open, &info);
      if (info.open != 0 || info.bytes != 0) g_report += name_ + ": a batch stayed open\n";
      free(*o);
    }
    const auto closed = [](const std::unique_ptr<Open>& o) { return o->open == nullptr; };
    open_.erase(std::remove_if(open_.begin(), open_.end(), closed), open_.end());
  }

  void same(const float* x, const float* y, int64_t n, const char* what) {
    compare(a_.replica, x, b_.replica, y, n, name_ + what);
  }

  void free(Open& o) {
    if (o.open != nullptr) check(mpe_close(o.open, nullptr), "close");
    mpe_free(o.open);
    o.open = nullptr;
  }

  std::mt19937_64 rng_;
  World a_, b_;
  std::vector<std::unique_ptr<Open>> open_;
  std::string name_;
};

}  // namespace

// Returns what differed, or nothing.
extern "C" __attribute__((visibility("default"))) const char* step_scenario(
    const mpe_backend* backend, uint64_t seed) {
  g_report.clear();
  Scenario(backend, seed).run();
  return g_report.c_str();
}
