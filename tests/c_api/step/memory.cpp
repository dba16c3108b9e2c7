// Want of memory at any point of a call: nothing has changed, or what step.h says.
#include "failing.h"
#include "world.h"

namespace {

using namespace step_tests;
using State = std::vector<std::vector<uint8_t>>;

class Shortage {
 public:
  Shortage(const mpe_backend* backend, uint64_t seed)
      : synchronous_(std::string(backend->name) == "cpu"),
        w_(Failing::over(backend), seed, false),
        first_(w_, seed + 1, false),
        second_(w_, seed + 2, false) {}

  int64_t run() {
    mpe_open_batch *a = open(first_), *b = open(second_);
    call("evaluate", [&] { return mpe_evaluate(a, &first_.outputs, nullptr); }, kNothing);
    if (first_.weight_grad != nullptr) {
      call(
          "weight_grad",
          [&] { return mpe_weight_grad(a, &first_.gradients, first_.weight_grad, nullptr); },
          kNothing);
    }
    a = admitted("admit", a, first_, [](mpe_open_batch* o) { return mpe_admit(o, nullptr); });
    a = forwarded(a, first_);
    b = forwarded(b, second_);
    train(a, b);
    call("flush", [&] { return mpe_flush(&w_.c, nullptr); }, kEarlierGroups);
    write_rows();
    if (Failing::borrowed != 0) g_report += "workspace was not given back\n";
    return failures_;
  }

 private:
  // What a failed call may have changed.
  enum Changes { kNothing, kEarlierGroups };

  mpe_open_batch* open(Sample& sample) {
    mpe_open_batch* made = nullptr;
    mpe_error error;
    call("open", [&] { return mpe_open(&w_.c, &sample.batch, nullptr, &made, &error); }, kNothing);
    return made;
  }

  // Lets call after call of a function fail until it succeeds.
  template <class Call>
  void call(const char* what, Call run, Changes changes) {
    for (int64_t n = 1; n < 1000; ++n) {
      const State before = w_.state();
      const int64_t borrowed = Failing::borrowed;
      Failing::calls_left = n;
      const mpe_status status = run();
      const bool failed = Failing::calls_left == 0;
      Failing::calls_left = 0;
      if (!failed) {
        if (status != MPE_OK) say(what, n, "fails without a reason");
        return;
      }
      ++failures_;
      if (status != MPE_ERR_MEMORY) say(what, n, "does not say so");
      if (changes == kNothing && w_.state() != before) say(what, n, "changes state");
      if (changes == kNothing && Failing::borrowed > borrowed + 3) say(what, n, "keeps workspace");
    }
    say(what, 1000, "never succeeds");
  }

  // A batch that a failure may close, with all of its pins gone; then another one is opened.
  template <class Call>
  mpe_open_batch* admitted(const char* what, mpe_open_batch* open_batch, Sample& sample, Call run) {
    for (int64_t n = 1; n < 1000; ++n) {
      const State before = w_.state();
      const int64_t pins = num_pins();
      Failing::calls_left = n;
      const mpe_status status = run(open_batch);
      const bool failed = Failing::calls_left == 0;
      Failing::calls_left = 0;
      if (!failed) {
        if (status != MPE_OK) say(what, n, "fails without a reason");
        return open_batch;
      }
      ++failures_;
      mpe_batch_info info;
      mpe_describe_batch(open_batch, &info);
      if (status != MPE_ERR_MEMORY) say(what, n, "does not say so");
      if (info.open != 0) {
        if (w_.state() != before) say(what, n, "changes state and leaves the batch open");
        continue;
      }
      if (num_pins() != pins) say(what, n, "leaves pins");
      if (synchronous_ && w_.state() != before && only_counts_differ(before, w_.state())) {
        say(what, n, "takes a step for nothing");
      }
      if (info.bytes != 0) say(what, n, "keeps workspace");
      mpe_free(open_batch);
      open_batch = open(sample);
    }
    say(what, 1000, "never succeeds");
    return open_batch;
  }

  mpe_open_batch* forwarded(mpe_open_batch* open_batch, Sample& sample) {
    mpe_batch_info info;
    mpe_describe_batch(open_batch, &info);
    if (info.admitted == 0) {
      return admitted("forward", open_batch, sample, [&](mpe_open_batch* o) {
        return mpe_forward(o, nullptr, &sample.outputs, nullptr);
      });
    }
    if (mpe_forward(open_batch, nullptr, &sample.outputs, nullptr) != MPE_OK) {
      g_report += "a forward after a prefetch fails\n";
    }
    return open_batch;
  }

  void train(mpe_open_batch* a, mpe_open_batch* b) {
    const mpe_batch_gradient both[] = {{a, first_.gradients, first_.weight_grad},
                                       {b, second_.gradients, second_.weight_grad}};
    int32_t updates = 0;  // that have failed so far
    for (int64_t n = 1; n < 1000; ++n) {
      const State before = w_.state();
      Failing::calls_left = n;
      const mpe_status status = mpe_backward(&w_.c, both, 2, nullptr);
      const bool failed = Failing::calls_left == 0;
      Failing::calls_left = 0;
      mpe_batch_info info;
      mpe_describe_batch(a, &info);
      if (!failed && status != MPE_OK) say("backward", n, "fails without a reason");
      if (!failed) break;
      ++failures_;
      if (status != MPE_ERR_MEMORY) say("backward", n, "does not say so");
      if (info.open == 0) {  // the second group's update: the first group's is done
        if (w_.state() == before) say("backward", n, "closes the batches for nothing");
        break;
      }
      ++updates;
      const State after = w_.state();
      if (synchronous_ ? after != before : !only_counts_differ(before, after)) {
        say("backward", n, "changes state and leaves the batches open");
      }
    }
    if (updates < 3) g_report += "too few failures of a backward were tried\n";
    if (num_pins() != 0) g_report += "pins are left after a backward\n";
    for (mpe_open_batch* batch : {a, b}) {
      mpe_batch_info info;
      mpe_describe_batch(batch, &info);
      if (info.open != 0 || info.bytes != 0) g_report += "a batch stays open after a backward\n";
      mpe_free(batch);
    }
  }

  void write_rows() {
    const std::vector<uint64_t> keys{0, 2};
    const std::vector<float> values(static_cast<size_t>(2 * w_.groups[0].dim), 0.5f);
    const uint64_t* k = w_.replica.make<uint64_t>(2, keys.data());
    const float* v = w_.replica.make<float>(2 * w_.groups[0].dim, values.data());
    call(
        "write_rows", [&] { return mpe_write_rows(&w_.c, 0, k, 2, v, nullptr); },
        synchronous_ ? kNothing : kEarlierGroups);
  }

  // A device's step and count of updates are not taken back.
  static bool only_counts_differ(State before, State after) {
    for (State* state : {&before, &after}) state->erase(state->end() - 3, state->end() - 1);
    return before == after;
  }

  int64_t num_pins() {
    int64_t pins = 0;
    for (int32_t g = 0; g < kGroups; ++g) {
      if (w_.groups[g].cache == nullptr) continue;
      for (const uint64_t tag : w_.tags(g)) {
        pins += static_cast<int64_t>((tag & MPE_PIN_MASK) / MPE_ONE_PIN);
      }
    }
    return pins;
  }

  static void say(const char* what, int64_t n, const char* wrong) {
    g_report +=
        std::string(what) + " without memory in call " + std::to_string(n) + " " + wrong + "\n";
  }

  const bool synchronous_;
  World w_;
  Sample first_, second_;
  int64_t failures_ = 0;
};

}  // namespace

// Returns what was wrong, or nothing; `failures` counts the calls that found no memory.
extern "C" __attribute__((visibility("default"))) const char* step_no_memory(
    const mpe_backend* backend, uint64_t seed, int64_t* failures) {
  g_report.clear();
  *failures = Shortage(backend, seed).run();
  return g_report.c_str();
}
