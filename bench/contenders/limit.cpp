// What the machine can do: bare reads, read-modify-writes and copies of the same rows in the same
// order, with prefetches and huge pages, and no arithmetic. Loaded by limit.py.
#include <sched.h>
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <thread>
#include <vector>

namespace {

constexpr int64_t kPrefetchDistance = 32, kLine = 64;
using Clock = std::chrono::steady_clock;
typedef uint64_t Vector __attribute__((vector_size(32)));

// The CPUs other than the caller's. Some systems start a new thread on the caller's CPU and leave
// it there for a while.
class OtherCpus {
 public:
  OtherCpus() {
    CPU_ZERO(&allowed_);
    if (sched_getaffinity(0, sizeof allowed_, &allowed_) != 0) return;
    for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
      if (CPU_ISSET(cpu, &allowed_) && cpu != sched_getcpu()) cpus_.push_back(cpu);
    }
  }
  // Moves the calling thread, number t > 0, to one of them.
  void move_to(int t) const {
    if (cpus_.empty()) return;
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(cpus_[static_cast<size_t>(t - 1) % cpus_.size()], &one);
    sched_setaffinity(0, sizeof one, &one);
  }

 private:
  cpu_set_t allowed_;
  std::vector<int> cpus_;
};

// Runs f(t) on `threads` threads and returns the seconds between a common start, after all of
// them have been created, and the end of the last.
template <class Function>
double timed(int threads, Function f) {
  const OtherCpus other_cpus;
  std::atomic<int> waiting{threads};
  std::vector<Clock::time_point> begun(threads), done(threads);
  const auto run = [&](int t) {
    if (t > 0) other_cpus.move_to(t);
    waiting.fetch_sub(1);
    while (waiting.load() > 0) std::this_thread::yield();
    begun[t] = Clock::now();
    f(t);
    done[t] = Clock::now();
  };
  std::vector<std::thread> others;
  for (int t = 1; t < threads; ++t) others.emplace_back(run, t);
  run(0);
  for (auto& other : others) other.join();
  const auto first = *std::min_element(begun.begin(), begun.end());
  const auto last = *std::max_element(done.begin(), done.end());
  return std::chrono::duration<double>(last - first).count();
}

template <bool kWrite>
void prefetch(const uint8_t* row, int64_t bytes) {
  for (int64_t b = 0; b < bytes; b += kLine) __builtin_prefetch(row + b, kWrite);
  __builtin_prefetch(row + bytes - 1, kWrite);  // an unaligned row may end in one more line
}

Vector read(const uint8_t* row, int64_t bytes, Vector sum) {
  Vector part;
  int64_t b = 0;
  for (; b + 32 <= bytes; b += 32) {
    std::memcpy(&part, row + b, 32);
    sum ^= part;
  }
  for (; b + 4 <= bytes; b += 4) {
    uint32_t word;
    std::memcpy(&word, row + b, 4);
    sum[0] ^= word;
  }
  for (; b < bytes; ++b) sum[0] ^= row[b];
  return sum;
}

void modify(uint8_t* row, int64_t bytes) {
  Vector part;
  int64_t b = 0;
  for (; b + 32 <= bytes; b += 32) {
    std::memcpy(&part, row + b, 32);
    part = ~part;
    std::memcpy(row + b, &part, 32);
  }
  for (; b + 4 <= bytes; b += 4) {
    uint32_t word;
    std::memcpy(&word, row + b, 4);
    word = ~word;
    std::memcpy(row + b, &word, 4);
  }
  for (; b < bytes; ++b) row[b] = static_cast<uint8_t>(~row[b]);
}

// The first of thread t's items when n of them are shared out.
int64_t first_item(int64_t n, int t, int threads) { return n * t / threads; }

}  // namespace

extern "C" {

// Huge pages where the system gives them; every page is touched. NULL without memory.
void* limit_allocate(int64_t bytes) {
  void* p = mmap(nullptr, static_cast<size_t>(bytes), PROT_READ | PROT_WRITE,
                 MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (p == MAP_FAILED) return nullptr;
#ifdef MADV_HUGEPAGE
  madvise(p, static_cast<size_t>(bytes), MADV_HUGEPAGE);
#endif
  std::memset(p, 1, static_cast<size_t>(bytes));
  return p;
}

void limit_free(void* p, int64_t bytes) { munmap(p, static_cast<size_t>(bytes)); }

// Reads n rows in order; each thread takes a part of the stream.
double limit_gather(const uint8_t* rows, int64_t row_bytes, const int64_t* indices, int64_t n,
                    int threads, uint64_t* sink) {
  std::vector<uint64_t> sums(threads);
  const double seconds = timed(threads, [&](int t) {
    const int64_t end = first_item(n, t + 1, threads);
    Vector sum{};
    for (int64_t i = first_item(n, t, threads); i < end; ++i) {
      const int64_t next = std::min(i + kPrefetchDistance, end - 1);
      prefetch<false>(rows + indices[next] * row_bytes, row_bytes);
      sum = read(rows + indices[i] * row_bytes, row_bytes, sum);
    }
    sums[t] = sum[0] ^ sum[1] ^ sum[2] ^ sum[3];
  });
  for (const uint64_t sum : sums) *sink ^= sum;
  return seconds;
}

// Changes n rows of two arrays in order (a second one of no bytes is left out). Thread t has
// indices[bounds[t] .. bounds[t + 1]), none of which may be another thread's.
double limit_modify(uint8_t* rows, int64_t row_bytes, uint8_t* state, int64_t state_bytes,
                    const int64_t* indices, const int64_t* bounds, int threads) {
  return timed(threads, [&](int t) {
    for (int64_t i = bounds[t]; i < bounds[t + 1]; ++i) {
      const int64_t next = indices[std::min(i + kPrefetchDistance, bounds[t + 1] - 1)];
      prefetch<true>(rows + next * row_bytes, row_bytes);
      if (state_bytes > 0) prefetch<true>(state + next * state_bytes, state_bytes);
      modify(rows + indices[i] * row_bytes, row_bytes);
      modify(state + indices[i] * state_bytes, state_bytes);
    }
  });
}

double limit_copy(uint8_t* to, const uint8_t* from, int64_t bytes, int threads) {
  return timed(threads, [&](int t) {
    const int64_t begin = first_item(bytes, t, threads);
    std::memcpy(to + begin, from + begin,
                static_cast<size_t>(first_item(bytes, t + 1, threads) - begin));
  });
}
}
