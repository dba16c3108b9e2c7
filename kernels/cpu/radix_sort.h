// Stable least-significant-digit radix sort with parallel passes. Chunks never depend on the number
// of threads, and a stable sort has one result anyway.
#pragma once

#include "cpu/common.h"

MPE_BEGIN

// A key with its position, where both do not fit into 64 bits.
struct KeyPos {
  uint64_t key;
  uint64_t pos;
};

inline uint64_t sort_key(uint64_t v) { return v; }
inline uint64_t sort_key(const KeyPos& v) { return v.key; }

inline int bits_for(uint64_t below) {  // bits that hold 0 .. below - 1
  return below <= 1 ? 0 : 64 - __builtin_clzll(below - 1);
}

template <class E>
inline void insertion_sort(E* a, int64_t n) {
  for (int64_t i = 1; i < n; ++i) {
    const E v = a[i];
    int64_t j = i;
    for (; j > 0 && sort_key(a[j - 1]) > sort_key(v); --j) a[j] = a[j - 1];
    a[j] = v;
  }
}

constexpr int kMaxDigitBits = 11;
constexpr int64_t kSortChunk = 16384;

// Sorts by bits [first_bit, first_bit + num_bits) of the key. Returns where the result lies (a or
// tmp), or null if there is no memory for the histograms.
template <class E>
E* radix_sort(E* a, E* tmp, int64_t n, int first_bit, int num_bits) {
  if (n <= 64) {
    insertion_sort(a, n);
    return a;
  }
  if (num_bits == 0) return a;
  const int passes = static_cast<int>(ceil_div(num_bits, kMaxDigitBits));
  const int digit_bits = static_cast<int>(ceil_div(num_bits, passes));
  const int64_t buckets = int64_t{1} << digit_bits;
  const int64_t chunks = task_count(n, kSortChunk);
  Buffer<int64_t> counts(chunks * buckets);
  if (!counts.ok()) return nullptr;
  for (int pass = 0; pass < passes; ++pass) {
    const int shift = first_bit + pass * digit_bits;
    const auto digit = [&](const E& e) {
      return static_cast<int64_t>((sort_key(e) >> shift) & static_cast<uint64_t>(buckets - 1));
    };
    mpe::parallel(chunks, [&](int64_t chunk) {
      int64_t* count = counts.get() + chunk * buckets;
      memset(count, 0, static_cast<size_t>(buckets) * sizeof(int64_t));
      const int64_t end = task_begin(n, chunks, chunk + 1);
      for (int64_t i = task_begin(n, chunks, chunk); i < end; ++i) ++count[digit(a[i])];
    });
    int64_t sum = 0;
    for (int64_t b = 0; b < buckets; ++b) {
      for (int64_t chunk = 0; chunk < chunks; ++chunk) {
        int64_t& count = counts[chunk * buckets + b];
        const int64_t here = count;
        count = sum;
        sum += here;
      }
    }
    mpe::parallel(chunks, [&](int64_t chunk) {
      int64_t* next = counts.get() + chunk * buckets;
      const int64_t end = task_begin(n, chunks, chunk + 1);
      for (int64_t i = task_begin(n, chunks, chunk); i < end; ++i) tmp[next[digit(a[i])]++] = a[i];
    });
    E* swap = a;
    a = tmp;
    tmp = swap;
  }
  return a;
}

MPE_END
