// Serves a checkpoint of Python's: prints the output of a bag with row 0 of each of its tables.
#include <mpembed/collection.h>

#include <cstdio>

int main(int argc, char** argv) try {
  auto emb = mpembed::Collection::load(argc > 1 ? argv[1] : "model.mpembed");
  std::vector<int64_t> indices(emb.configs().size(), 0), offsets{0};
  for (size_t t = 0; t < indices.size(); ++t) offsets.push_back(offsets.back() + 1);
  std::vector<float> out(static_cast<size_t>(emb.width()));
  emb.evaluate(emb.batch(indices, offsets), out.data());
  for (const float value : out) std::printf("%.9g\n", value);
  return 0;
} catch (const std::exception& error) {
  std::fprintf(stderr, "%s: %s\n", argv[0], error.what());
  return 1;
}
