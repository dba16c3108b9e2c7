// cub::DeviceRadixSort.
#ifndef SIMT_EMU_CUB_RADIX_H
#define SIMT_EMU_CUB_RADIX_H

#include <algorithm>
#include <cstdio>
#include <numeric>
#include <vector>

#include "emu/cub/common.h"

namespace cub {

struct NullType {};

template <class T>
struct DoubleBuffer {
  T* d_buffers[2];
  int selector;

  DoubleBuffer() : d_buffers{nullptr, nullptr}, selector(0) {}
  DoubleBuffer(T* current, T* alternate) : d_buffers{current, alternate}, selector(0) {}
  T* Current() { return d_buffers[selector]; }
  T* Alternate() { return d_buffers[selector ^ 1]; }
};

}  // namespace cub

namespace simt {

// Positions in the stable order of bits [begin_bit, end_bit) of the keys.
template <class K>
std::vector<size_t> radix_order(const K* keys, size_t n, int begin_bit, int end_bit) {
  static_assert(std::is_unsigned<K>::value, "unsigned keys");
  std::vector<size_t> order(n), next(n);
  std::iota(order.begin(), order.end(), size_t{0});
  for (int bit = begin_bit; bit < end_bit; bit += 8) {
    const unsigned digit_mask = (1u << std::min(8, end_bit - bit)) - 1;
    const auto digit = [&](size_t i) { return static_cast<unsigned>(keys[i] >> bit) & digit_mask; };
    size_t starts[257] = {};
    for (size_t i = 0; i < n; ++i) ++starts[digit(i) + 1];
    for (int d = 0; d < 256; ++d) starts[d + 1] += starts[d];
    for (size_t i : order) next[starts[digit(i)]++] = i;
    order.swap(next);
  }
  return order;
}

template <class T>
void gather(const T* in, const std::vector<size_t>& order, T* out) {
  std::vector<T> sorted(order.size());
  for (size_t i = 0; i < order.size(); ++i) sorted[i] = in[order[i]];
  std::copy(sorted.begin(), sorted.end(), out);
}

inline void gather(const cub::NullType*, const std::vector<size_t>&, cub::NullType*) {}

template <class T>
bool overlaps(const T* a, const T* b, size_t n) {
  return !std::is_empty<T>::value && n != 0 && a < b + n && b < a + n;
}

template <class K, class V>
cudaError_t radix_sort(void* storage, size_t& storage_bytes, const K* keys_in, K* keys_out,
                       const V* values_in, V* values_out, int64_t n, int begin_bit, int end_bit,
                       cudaStream_t stream) {
  if (begin_bit < 0 || end_bit < begin_bit || end_bit > static_cast<int>(sizeof(K) * 8)) {
    return cub_refuse("bits out of range");
  }
  const size_t count = n < 0 ? 0 : static_cast<size_t>(n);
  if (storage != nullptr &&
      (overlaps<K>(keys_in, keys_out, count) || overlaps<V>(values_in, values_out, count))) {
    return cub_refuse("a sort onto its input");
  }
  const size_t needed = 1024 + count * (sizeof(K) + sizeof(V));
  return cub_call(storage, storage_bytes, needed, n, stream, [=] {
    const std::vector<size_t> order = radix_order(keys_in, count, begin_bit, end_bit);
    gather(keys_in, order, keys_out);
    gather(values_in, order, values_out);
  });
}

template <class T>
void move_to_alternate(cub::DoubleBuffer<T>& buffer, const std::vector<size_t>& order) {
  gather(buffer.Current(), order, buffer.Alternate());
  memset(static_cast<void*>(buffer.Current()), 0xA5, order.size() * sizeof(T));
  buffer.selector ^= 1;
}

inline void move_to_alternate(cub::DoubleBuffer<cub::NullType>&, const std::vector<size_t>&) {}

// As with CUB, an even number of passes leaves the result where the input was.
template <class K, class V>
cudaError_t radix_sort(void* storage, size_t& storage_bytes, cub::DoubleBuffer<K>& keys,
                       cub::DoubleBuffer<V>& values, int64_t n, int begin_bit, int end_bit,
                       cudaStream_t stream) {
  if (begin_bit < 0 || end_bit < begin_bit || end_bit > static_cast<int>(sizeof(K) * 8)) {
    return cub_refuse("bits out of range");
  }
  const size_t count = n < 0 ? 0 : static_cast<size_t>(n);
  const bool moves = (end_bit - begin_bit + 7) / 8 % 2 != 0;
  const cudaError_t error =
      cub_call(storage, storage_bytes, 4096, n, stream, [=, k = keys, v = values]() mutable {
        const std::vector<size_t> order = radix_order(k.Current(), count, begin_bit, end_bit);
        move_to_alternate(k, order);
        move_to_alternate(v, order);
        if (moves) return;
        std::vector<size_t> same(count);
        std::iota(same.begin(), same.end(), size_t{0});
        move_to_alternate(k, same);
        move_to_alternate(v, same);
      });
  // The selector is set at the call, before the sort has run.
  if (storage != nullptr && error == cudaSuccess && moves) {
    keys.selector ^= 1;
    values.selector ^= 1;
  }
  return error;
}

}  // namespace simt

namespace cub {

struct DeviceRadixSort {
  template <class K, class V, class N>
  static cudaError_t SortPairs(void* storage, size_t& bytes, const K* keys_in, K* keys_out,
                               const V* values_in, V* values_out, N n, int begin_bit = 0,
                               int end_bit = sizeof(K) * 8, cudaStream_t stream = nullptr) {
    return simt::radix_sort(storage, bytes, keys_in, keys_out, values_in, values_out,
                            static_cast<int64_t>(n), begin_bit, end_bit, stream);
  }

  template <class K, class V, class N>
  static cudaError_t SortPairs(void* storage, size_t& bytes, DoubleBuffer<K>& keys,
                               DoubleBuffer<V>& values, N n, int begin_bit = 0,
                               int end_bit = sizeof(K) * 8, cudaStream_t stream = nullptr) {
    return simt::radix_sort(storage, bytes, keys, values, static_cast<int64_t>(n), begin_bit,
                            end_bit, stream);
  }

  template <class K, class N>
  static cudaError_t SortKeys(void* storage, size_t& bytes, const K* keys_in, K* keys_out, N n,
                              int begin_bit = 0, int end_bit = sizeof(K) * 8,
                              cudaStream_t stream = nullptr) {
    return simt::radix_sort<K, NullType>(storage, bytes, keys_in, keys_out, nullptr, nullptr,
                                         static_cast<int64_t>(n), begin_bit, end_bit, stream);
  }

  template <class K, class N>
  static cudaError_t SortKeys(void* storage, size_t& bytes, DoubleBuffer<K>& keys, N n,
                              int begin_bit = 0, int end_bit = sizeof(K) * 8,
                              cudaStream_t stream = nullptr) {
    DoubleBuffer<NullType> none;
    return simt::radix_sort(storage, bytes, keys, none, static_cast<int64_t>(n), begin_bit, end_bit,
                            stream);
  }
};

}  // namespace cub

#endif
