// A fuzzer for compilers without libFuzzer, with that one's options:
//   TARGET [-runs=N] [-max_total_time=SECONDS] [-seed=N] [-max_len=BYTES] FILE|FOLDER...
// It runs the files, then, if it was given a limit, changed copies of them. With GCC's
// -fsanitize-coverage=trace-pc in the target, an input that reaches new code is kept for further
// changes. What a sanitizer stops is written to crash-SEED-RUN in the working directory.
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <vector>

#include "target.h"

// Called at every branch of a target, so it is not itself checked.
#define PLAIN __attribute__((no_sanitize("address", "undefined")))

extern "C" {
void __asan_set_death_callback(void (*)());
void __sanitizer_cov_trace_pc();
__attribute__((weak)) size_t LLVMFuzzerCustomMutator(uint8_t*, size_t, size_t, unsigned);
const char* __asan_default_options();
}

namespace {

using Input = std::vector<uint8_t>;
using Random = std::mt19937_64;

struct Options {
  long long runs = -1, seconds = -1;
  unsigned long long seed = 0;
  size_t longest = 4096;
  std::vector<std::string> paths;
};

Options options;
Input current;
long long run = 0;
Random random_numbers;
uint8_t covered[1 << 16];
bool found_new = false;

size_t draw(size_t n) { return static_cast<size_t>(random_numbers() % n); }

// In a process that is about to end: no allocation.
void keep_current() {
  char name[64];
  std::snprintf(name, sizeof name, "crash-%llu-%lld", options.seed, run);
  const int file = open(name, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
  if (file < 0 || write(file, current.data(), current.size()) < 0) return;
  close(file);
  std::fprintf(stderr, "the input is in %s\n", name);
}

void call() {
  const Input exact(current);  // of just this size, so that an access beyond it is found
  LLVMFuzzerTestOneInput(exact.data(), exact.size());
  ++run;
}

bool option(const char* word, const char* name, long long* out) {
  const size_t length = std::strlen(name);
  if (std::strncmp(word, name, length) != 0) return false;
  char* end = nullptr;
  *out = std::strtoll(word + length, &end, 10);
  return *end == '\0' && end != word + length;
}

bool parse(int count, char** words) {
  for (int i = 1; i < count; ++i) {
    long long value = 0;
    if (option(words[i], "-runs=", &options.runs)) continue;
    if (option(words[i], "-max_total_time=", &options.seconds)) continue;
    if (option(words[i], "-seed=", &value)) {
      options.seed = static_cast<unsigned long long>(value);
    } else if (option(words[i], "-max_len=", &value)) {
      options.longest = static_cast<size_t>(value);
    } else if (words[i][0] == '-') {
      return false;
    } else {
      options.paths.push_back(words[i]);
    }
  }
  return !options.paths.empty();
}

// The inputs of files and folders, in the order of their names.
std::vector<Input> read_all() {
  std::vector<std::filesystem::path> files;
  for (const std::string& path : options.paths) {
    if (std::filesystem::is_directory(path)) {
      for (const auto& entry : std::filesystem::directory_iterator(path)) files.push_back(entry);
    } else {
      files.push_back(path);
    }
  }
  std::sort(files.begin(), files.end());
  std::vector<Input> inputs;
  for (const auto& path : files) {
    std::ifstream file(path, std::ios::binary);
    inputs.emplace_back(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>{});
    if (!file) std::fprintf(stderr, "%s cannot be read\n", path.c_str()), std::exit(2);
  }
  return inputs;
}

// Half of the time of one of the first inputs: what is kept later is mostly refused early.
void change(const std::vector<Input>& corpus, size_t first) {
  current = corpus[draw(draw(2) == 0 ? first : corpus.size())];
  const size_t room = std::max(options.longest, current.size());
  for (size_t i = 1 + draw(2) * draw(3); i > 0; --i) {
    size_t size = current.size();
    current.resize(room);
    size = LLVMFuzzerCustomMutator != nullptr
               ? LLVMFuzzerCustomMutator(current.data(), size, room,
                                         static_cast<unsigned>(random_numbers()))
               : LLVMFuzzerMutate(current.data(), size, room);
    current.resize(size);
  }
}

void fuzz_with(std::vector<Input> corpus) {
  const auto begin = std::chrono::steady_clock::now();
  const long long replayed = run;
  const size_t first = corpus.size();
  const auto seconds = [&] {
    const std::chrono::duration<double> passed = std::chrono::steady_clock::now() - begin;
    return passed.count();
  };
  const auto goes_on = [&] {
    const bool timed = options.seconds >= 0;
    return (timed || options.runs >= 0) && (options.runs < 0 || run - replayed < options.runs) &&
           (!timed || seconds() < static_cast<double>(options.seconds));
  };
  while (goes_on()) {
    change(corpus, first);
    found_new = false;
    call();
    if (found_new) corpus.push_back(current);
  }
  std::printf("runs %lld\ncorpus %zu\nseconds %.1f\n", run, corpus.size(), seconds());
}

}  // namespace

// A fault of a target, by abort(), is reported and kept as those of the sanitizers are.
extern "C" const char* __asan_default_options() { return "handle_abort=1"; }

extern "C" PLAIN void __sanitizer_cov_trace_pc() {
  uint8_t& seen =
      covered[reinterpret_cast<uintptr_t>(__builtin_return_address(0)) * 0x9E3779B97F4A7C15u >> 48];
  found_new |= seen == 0;
  seen = 1;
}

extern "C" size_t LLVMFuzzerMutate(uint8_t* data, size_t size, size_t max_size) {
  static constexpr uint8_t kOften[] = {0x00, 0x01, 0x7F, 0x80, 0xFF, 0x7B, 0x7C, 0x3C, 0xFB};
  if (size == 0) {
    data[0] = static_cast<uint8_t>(random_numbers());
    return 1;
  }
  const size_t at = draw(size), count = 1 + draw(std::min<size_t>(size - at, 16));
  switch (draw(6)) {
    case 0:
      data[at] ^= static_cast<uint8_t>(1u << draw(8));
      return size;
    case 1:
      data[at] = static_cast<uint8_t>(random_numbers());
      return size;
    case 2:
      memset(data + at, kOften[draw(sizeof kOften)], count);
      return size;
    case 3:
      memmove(data + at, data + at + count, size - at - count);
      return size - count;
    case 4:
      if (size + count > max_size) return size;
      memmove(data + at + count, data + at, size - at);
      for (size_t i = 0; i < count; ++i) data[at + i] = static_cast<uint8_t>(random_numbers());
      return size + count;
    default:
      memmove(data + at, data + draw(size - count + 1), count);
      return size;
  }
}

int main(int count, char** words) {
  if (!parse(count, words)) {
    std::fprintf(stderr,
                 "usage: %s [-runs=N] [-max_total_time=SECONDS] [-seed=N] "
                 "[-max_len=BYTES] FILE|FOLDER...\n",
                 words[0]);
    return 2;
  }
  random_numbers.seed(options.seed);
  __asan_set_death_callback(keep_current);
  const std::vector<Input> inputs = read_all();
  for (const Input& input : inputs) {
    current = input;
    call();
  }
  if (inputs.empty()) return std::fprintf(stderr, "there are no inputs\n"), 2;
  fuzz_with(inputs);
  return 0;
}
