// Trains a collection with mpembed/collection.h and writes what it gave and holds to a file:
// collection_driver FILE KIND DECAY STATE_FORMAT PRECISION POLICY NAME=VALUE...; with a checkpoint
// in the place of KIND, serves that.
#include <mpembed/collection.h>

#include <cstdio>
#include <fstream>

using namespace mpembed;

#if defined(USE_CUDA)
static const mpe_backend* backend() { return mpe_cuda_backend(); }
#else
static const mpe_backend* backend() { return mpe_cpu_backend(); }
#endif

// What is written.
class Output {
 public:
  explicit Output(const char* path) : file_(path, std::ios::binary) {}
  template <class T>
  void write(const std::vector<T>& values) {
    file_.write(reinterpret_cast<const char*>(values.data()),
                static_cast<std::streamsize>(values.size() * sizeof(T)));
  }

 private:
  std::ofstream file_;
};

// Indices of two bags a table; every third batch has an empty bag.
struct Batch {
  std::vector<int64_t> indices, offsets{0};

  Batch(const Collection& emb, uint64_t* state) {
    for (const TableConfig& table : emb.configs()) {
      for (int bag = 0; bag < 2; ++bag) {
        const uint64_t length = draw(state) % 4;
        for (uint64_t i = 0; i < length; ++i) {
          indices.push_back(
              static_cast<int64_t>(draw(state) % static_cast<uint64_t>(table.num_rows)));
        }
        offsets.push_back(static_cast<int64_t>(indices.size()));
      }
    }
  }
  static uint64_t draw(uint64_t* state) {
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return *state >> 33;
  }
};

// A batch with its outputs and their gradient, where the kernels run.
struct OnDevice {
  Array<int64_t> indices, offsets;
  Array<float> out, grad;

  OnDevice(const Collection& emb, const Batch& batch)
      : indices(emb.device(), batch.indices),
        offsets(emb.device(), batch.offsets),
        out(emb.device(), 2 * emb.width()),
        grad(emb.device(), 2 * emb.width()) {}

  // The gradient of half the squared distance to 1.
  void make_grad() {
    std::vector<float> values = out.read();
    for (float& v : values) v -= 1.0f;
    grad.set(values);
  }
};

static std::vector<TableConfig> tables(int32_t precision) {
  std::vector<TableConfig> made(4);
  made[0].name = "a";
  made[0].num_rows = 40, made[0].dim = 8, made[0].precision = precision;
  made[1].name = "b";
  made[1].num_rows = 30, made[1].dim = 8, made[1].precision = precision;
  made[1].pooling = MPE_pooling_mean;
  made[1].optimizer = OptimizerConfig{MPE_optimizer_sgd, {{"lr", 0.5}}};
  made[2].name = "c";
  made[2].num_rows = 20, made[2].dim = 5, made[2].trainable = false;
  made[3].name = "d";
  made[3].num_rows = 25, made[3].dim = 5, made[3].precision = precision;
  made[3].table_id = 9, made[3].first_row = 100, made[3].total_rows = 1000;
  made[3].init = InitConfig{MPE_init_normal, 0.5f};
  return made;
}

static CollectionOptions options(char** argv, int argc) {
  CollectionOptions made;
  OptimizerConfig& optimizer = made.optimizer.emplace();
  optimizer.kind = std::atoi(argv[0]);
  optimizer.decay_mode = std::atoi(argv[1]);
  for (int32_t i = 0; i < mpe_num_states(optimizer.kind); ++i) {
    optimizer.state_formats[mpe_state_name(optimizer.kind, i)] = std::atoi(argv[2]);
  }
  for (int i = 5; i < argc; ++i) {
    const std::string text = argv[i];
    const size_t sign = text.find('=');
    const std::string name = text.substr(0, sign);
    const double value = std::strtod(text.c_str() + sign + 1, nullptr);
    if (name.rfind("initial:", 0) == 0) {
      optimizer.initial_values[name.substr(8)] = static_cast<float>(value);
    } else {
      optimizer.parameters[name] = value;
    }
  }
  const int32_t policy = std::atoi(argv[4]);
  if (policy >= 0) made.cache = CacheConfig{0.0, 1, policy, 32};
  made.seed = 3;
  return made;
}

static void train(Collection* emb, Output* output) {
  uint64_t state = 5;
  for (int step = 0; step < 20; ++step) {
    if (step == 7) emb->set_rows("a", {3, 1}, std::vector<float>(16, 0.75f));
    for (const char* table : {"a", "d"}) {
      if (step == 11) emb->set_parameter(table, "lr", 0.02);
    }
    OnDevice first(*emb, Batch(*emb, &state)), second(*emb, Batch(*emb, &state));
    OpenBatch one = emb->prefetch(emb->batch(first.indices, first.offsets));
    OpenBatch two = emb->forward(emb->batch(second.indices, second.offsets), second.out.data());
    emb->forward(one, first.out.data());
    first.make_grad(), second.make_grad();
    if (step % 3 == 0) {
      emb->backward({{two, second.grad.data()}, {one, first.grad.data()}});
    } else {
      emb->backward(one, first.grad.data());
      emb->backward(two, second.grad.data());
    }
    output->write(first.out.read());
    output->write(second.out.read());
  }
  emb->check();
  output->write(emb->rows("d", {0, 24, 3}));
  emb->flush();
  for (const TableConfig& table : emb->configs()) {
    output->write(emb->packed_rows(table.name));
    output->write(emb->stats(table.name));
    output->write(emb->noise(table.name));
  }
}

static void serve(Collection* emb, Output* output) {
  uint64_t state = 5;
  for (int i = 0; i < 5; ++i) {
    OnDevice one(*emb, Batch(*emb, &state));
    emb->evaluate(emb->batch(one.indices, one.offsets), one.out.data());
    output->write(one.out.read());
  }
}

// A loaded collection has nothing to train, but gives the gradient of weights.
static void refuse_to_train(Collection* emb) {
  uint64_t state = 5;
  OnDevice one(*emb, Batch(*emb, &state));
  OpenBatch open = emb->forward(emb->batch(one.indices, one.offsets), one.out.data());
  std::string said;
  try {
    emb->backward(open, one.grad.data());
  } catch (const std::logic_error& error) {
    said = error.what();
  }
  if (said.find("loaded checkpoint are frozen") == std::string::npos) {
    throw std::runtime_error("a backward was not refused: " + said);
  }
  one.grad.set(std::vector<float>(static_cast<size_t>(one.grad.size()), 1.0f));
  const Array<float> weight_grad(emb->device(), one.indices.size());
  emb->backward(open, one.grad.data(), weight_grad.data());
  for (const float value : weight_grad.read()) {
    if (value != 0.0f) return;
  }
  throw std::runtime_error("no gradient of weights");
}

int main(int argc, char** argv) try {
  Output output(argv[1]);
  if (argc == 3) {
    Collection emb = Collection::load(argv[2], backend());
    serve(&emb, &output);
    refuse_to_train(&emb);
    return 0;
  }
  Collection emb(tables(std::atoi(argv[5])), options(argv + 2, argc - 2), backend());
  train(&emb, &output);
  return 0;
} catch (const std::exception& error) {
  std::fprintf(stderr, "%s\n", error.what());
  return 1;
}
