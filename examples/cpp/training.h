// The training that every example does: a skewed stream of bags, whose sums are to become 1.
#pragma once

#include <cinttypes>
#include <cstdio>
#include <fstream>

#include "embedding.h"

constexpr Sizes kSizes{5000, 64, 96, 16, 4, 32};
constexpr int kSteps = 200;
constexpr uint64_t kSeed = 7;
constexpr float kTarget = 1.0f, kRate = 0.1f;

// Draws indices, low ones more often than high ones.
class Draws {
 public:
  explicit Draws(int64_t rows) : rows_(static_cast<uint64_t>(rows)) {}
  int64_t next() {
    const uint64_t a = number() % rows_, b = number() % rows_;
    return static_cast<int64_t>(a * b / rows_);
  }

 private:
  uint64_t number() {
    state_ = state_ * 6364136223846793005u + 1442695040888963407u;
    return state_ >> 33;
  }

  uint64_t rows_, state_ = 1;
};

// Bags of 0, 1, 2 and 3 indices in turn.
inline std::vector<int64_t> bag_offsets() {
  std::vector<int64_t> offsets{0};
  for (int64_t b = 0; b < kSizes.batch_size; ++b) offsets.push_back(offsets.back() + b % 4);
  return offsets;
}

inline float mean_square(const std::vector<float>& values) {
  float sum = 0.0f;
  for (float v : values) sum += v * v;
  return sum / static_cast<float>(values.size());
}

inline uint64_t fnv1a(const std::vector<uint8_t>& bytes) {
  uint64_t hash = 14695981039346656037u;
  for (uint8_t byte : bytes) hash = (hash ^ byte) * 1099511628211u;
  return hash;
}

// Trains on a device and writes the state to a file. subtract(out, target, grad, n) fills the
// gradient where the kernels run.
template <class Subtract>
void train(const Device& device, const char* path, Subtract subtract) {
  Embedding embedding(device, kSizes, kSeed);
  Draws draws(kSizes.rows);
  const std::vector<int64_t> offsets = bag_offsets();
  std::vector<int64_t> indices(static_cast<size_t>(kSizes.num_indices));
  for (int step = 0; step < kSteps; ++step) {
    for (int64_t& index : indices) index = draws.next();
    embedding.forward(indices, offsets);
    subtract(embedding.out.get(), kTarget, embedding.grad.get(), embedding.out.size());
    embedding.backward(kRate);
    if (step % 50 == 0 || step == kSteps - 1) {
      std::printf("step %3d: loss %.4f\n", step, mean_square(embedding.grad.read()));
    }
  }
  embedding.flush();
  embedding.check();

  const std::vector<uint8_t> bytes = embedding.bytes();
  std::ofstream file(path, std::ios::binary);
  file.write(reinterpret_cast<const char*>(bytes.data()),
             static_cast<std::streamsize>(bytes.size()));
  file.close();
  if (!file) throw std::runtime_error(std::string("cannot write ") + path);
  std::printf("%s (%s): %" PRId64 " hits, %" PRId64 " evictions, %" PRId64 " write-backs\n",
              device.b.name, device.b.level, embedding.stat(MPE_stat_hits),
              embedding.stat(MPE_stat_evictions), embedding.stat(MPE_stat_write_backs));
  std::printf("%zu bytes, checksum %016" PRIx64 "\n", bytes.size(), fnv1a(bytes));
}
