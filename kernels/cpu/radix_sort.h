// A stable radix sort, least significant digit first, with parallel passes. Its chunks never depend
// on the number of threads, and a stable sort has only one result anyway.
#pragma once

#include "cpu/common.h"

MPE_BEGIN

// A key with its position, where both do not fit into 64 bits.
struct KeyAndPosition {
  uint64_t key;
  uint64_t position;
};

inline uint64_t sort_key(uint64_t element) { return element; }
inline uint64_t sort_key(const KeyAndPosition& element) { return element.key; }

inline int bits_for(uint64_t below) {  // bits that hold 0 .. below - 1
  return below <= 1 ? 0 : 64 - __builtin_clzll(below - 1);
}

template <class Element>
inline void insertion_sort(Element* elements, int64_t n) {
  for (int64_t i = 1; i < n; ++i) {
    const Element moved = elements[i];
    int64_t j = i;
    for (; j > 0 && sort_key(elements[j - 1]) > sort_key(moved); --j) elements[j] = elements[j - 1];
    elements[j] = moved;
  }
}

constexpr int kMaxDigitBits = 11;
constexpr int64_t kChunkElements = 16384;

// counts, of each chunk by digit, become the places where the chunks' elements go: digit by digit,
// within a digit chunk by chunk.
inline void counts_to_places(int64_t* counts, int64_t chunks, int64_t digits) {
  int64_t sum = 0;
  for (int64_t digit = 0; digit < digits; ++digit) {
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      int64_t& count = counts[chunk * digits + digit];
      const int64_t here = count;
      count = sum;
      sum += here;
    }
  }
}

// Sorts by bits [first_bit, first_bit + num_bits) of the key. Returns where the result lies
// (`elements` or `spare`, which has room for as many), or null if there is no memory for the
// histograms.
template <class Element>
Element* radix_sort(Element* elements, Element* spare, int64_t n, int first_bit, int num_bits) {
  if (n <= 64) {
    insertion_sort(elements, n);
    return elements;
  }
  if (num_bits == 0) return elements;
  const int passes = static_cast<int>(ceil_div(num_bits, kMaxDigitBits));
  const int digit_bits = static_cast<int>(ceil_div(num_bits, passes));
  const int64_t digits = int64_t{1} << digit_bits;
  const int64_t chunks = task_count(n, kChunkElements);
  Workspace<int64_t> counts(chunks * digits);
  if (!counts.ok()) return nullptr;
  for (int pass = 0; pass < passes; ++pass) {
    const int shift = first_bit + pass * digit_bits;
    const auto digit_of = [=](const Element& element) {
      return static_cast<int64_t>((sort_key(element) >> shift) & static_cast<uint64_t>(digits - 1));
    };
    parallel_range(n, chunks, [&](int64_t chunk, int64_t begin, int64_t end) {
      int64_t* count = counts.get() + chunk * digits;
      memset(count, 0, static_cast<size_t>(digits) * sizeof(int64_t));
      for (int64_t i = begin; i < end; ++i) ++count[digit_of(elements[i])];
    });
    counts_to_places(counts.get(), chunks, digits);
    parallel_range(n, chunks, [&](int64_t chunk, int64_t begin, int64_t end) {
      int64_t* place = counts.get() + chunk * digits;
      for (int64_t i = begin; i < end; ++i) spare[place[digit_of(elements[i])]++] = elements[i];
    });
    Element* const sorted = spare;
    spare = elements;
    elements = sorted;
  }
  return elements;
}

MPE_END
