// Trains an INT4 table with an FP32 cache so that its bags sum to 1, serves it, and writes its
// packed rows and the outputs to a file.
#include <mpembed/collection.h>

#include <cstdio>
#include <fstream>

constexpr int64_t kRows = 5000, kBatch = 64, kIndices = 96;

// Draws indices, low ones more often than high ones.
static std::vector<int64_t> draw_indices(uint64_t* state) {
  const auto number = [state] {
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return static_cast<int64_t>((*state >> 33) % kRows);
  };
  std::vector<int64_t> indices(kIndices);
  for (int64_t& index : indices) {
    const int64_t a = number(), b = number();
    index = a * b / kRows;
  }
  return indices;
}

static void run(const char* path) {
  mpembed::CollectionOptions options;
  options.optimizer = {MPE_optimizer_rowwise_adagrad, {{"lr", 0.1}, {"eps", 1e-8}}};
  options.cache = mpembed::CacheConfig{0.0, 4, MPE_policy_lfu};
  options.seed = 7;
  mpembed::Collection emb({{"t", kRows, 16, MPE_format_int4}}, options);

  std::vector<int64_t> offsets{0};  // bags of 0, 1, 2 and 3 indices in turn
  for (int64_t bag = 0; bag < kBatch; ++bag) offsets.push_back(offsets.back() + bag % 4);
  std::vector<float> out(kBatch * 16), grad(kBatch * 16);
  uint64_t state = 1;
  for (int step = 0; step < 200; ++step) {
    const std::vector<int64_t> indices = draw_indices(&state);
    auto open = emb.forward(emb.batch(indices, offsets), out.data());
    float loss = 0.0f;
    for (size_t i = 0; i < out.size(); ++i) loss += (grad[i] = out[i] - 1.0f) * grad[i];
    emb.backward(open, grad.data());
    if (step % 50 == 0 || step == 199) std::printf("step %3d: loss %.1f\n", step, loss);
  }
  emb.check();
  emb.evaluate(emb.batch(draw_indices(&state), offsets), out.data());
  emb.flush();
  const auto rows = emb.packed_rows("t");
  std::ofstream file(path, std::ios::binary);
  file.write(reinterpret_cast<const char*>(rows.data()), static_cast<std::streamsize>(rows.size()));
  file.write(reinterpret_cast<const char*>(out.data()), kBatch * 16 * sizeof(float));
  if (!file.flush()) throw std::runtime_error(std::string("cannot write ") + path);
}

int main(int argc, char** argv) try {
  if (argc == 2) return run(argv[1]), 0;
  std::fprintf(stderr, "usage: %s FILE\n", argv[0]);
  return 2;
} catch (const std::exception& error) {
  std::fprintf(stderr, "%s: %s\n", argv[0], error.what());
  return 1;
}
