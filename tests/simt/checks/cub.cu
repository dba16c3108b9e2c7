// Self-tests of the SIMT emulation: CUB's functions against the standard library's.
#include <thrust/iterator/counting_iterator.h>
#include <thrust/iterator/transform_iterator.h>
#include <algorithm>
#include <cub/cub.cuh>
#include <numeric>

#include "checks.h"

namespace {

uint64_t draw(uint64_t i) {
  uint64_t z = (i + 1) * 0x9E3779B97F4A7C15ull;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
  return z ^ (z >> 27);
}

// Queries the size of the storage, allocates it, and calls.
template <class F>
cudaError_t with_storage(F f) {
  size_t bytes = 0;
  EXPECT(f(nullptr, bytes) == cudaSuccess && bytes > 0);
  Array<char> storage(bytes);
  return f(storage.data(), bytes);
}

template <class K>
std::vector<K> random_keys(size_t n) {
  std::vector<K> keys(n);
  for (size_t i = 0; i < n; ++i) keys[i] = static_cast<K>(draw(i) & 0x0F0F0F0F0F0F0F0Full);
  return keys;
}

template <class K>
void check_sort(size_t n, int begin_bit, int end_bit) {
  const std::vector<K> keys = random_keys<K>(n);
  std::vector<int> values(n);
  std::iota(values.begin(), values.end(), 0);
  const int bits = end_bit - begin_bit;
  const K mask =
      bits == static_cast<int>(sizeof(K) * 8) ? ~K{0} : ((K{1} << bits) - 1) << begin_bit;
  std::vector<int> want = values;
  std::stable_sort(want.begin(), want.end(),
                   [&](int a, int b) { return (keys[a] & mask) < (keys[b] & mask); });
  const auto expect_sorted = [&](const std::vector<K>& k, const std::vector<int>* v) {
    for (size_t i = 0; i < n; ++i) {
      EXPECT(k[i] == keys[want[i]]);
      EXPECT(v == nullptr || (*v)[i] == want[i]);
    }
  };
  Array<K> k0(keys), k1(n);
  Array<int> v0(values), v1(n);
  EXPECT(with_storage([&](void* p, size_t& bytes) {
           return cub::DeviceRadixSort::SortPairs(p, bytes, k0.data(), k1.data(), v0.data(),
                                                  v1.data(), static_cast<int64_t>(n), begin_bit,
                                                  end_bit);
         }) == cudaSuccess);
  const std::vector<int> sorted_values = v1.get();
  expect_sorted(k1.get(), &sorted_values);
  EXPECT(k0.get() == keys && v0.get() == values);
  EXPECT(with_storage([&](void* p, size_t& bytes) {
           return cub::DeviceRadixSort::SortKeys(p, bytes, k0.data(), k1.data(),
                                                 static_cast<int>(n), begin_bit, end_bit, nullptr);
         }) == cudaSuccess);
  expect_sorted(k1.get(), nullptr);
  cub::DoubleBuffer<K> k(k0.data(), k1.data());
  cub::DoubleBuffer<int> v(v0.data(), v1.data());
  EXPECT(with_storage([&](void* p, size_t& bytes) {
           return cub::DeviceRadixSort::SortPairs(p, bytes, k, v, static_cast<int>(n), begin_bit,
                                                  end_bit);
         }) == cudaSuccess);
  const std::vector<int> buffered = (v.Current() == v0.data() ? v0 : v1).get();
  expect_sorted((k.Current() == k0.data() ? k0 : k1).get(), &buffered);
}

CHECK(cub_sort) {
  for (const size_t n : {size_t{1}, size_t{1000}}) {
    check_sort<uint32_t>(n, 0, 32);
    check_sort<uint32_t>(n, 4, 13);
    check_sort<uint64_t>(n, 0, 64);
    check_sort<uint64_t>(n, 0, 27);
    check_sort<uint64_t>(n, 33, 33);
  }
}

struct IsOdd {
  __host__ __device__ bool operator()(int i) const { return i % 2 != 0; }
};

CHECK(cub_select) {
  Array<int> out(500);
  Array<int64_t> count(1);
  const thrust::counting_iterator<int> numbers(100);
  EXPECT(with_storage([&](void* p, size_t& bytes) {
           return cub::DeviceSelect::If(p, bytes, numbers, out.data(), count.data(), 999, IsOdd());
         }) == cudaSuccess);
  EXPECT(count.get()[0] == 499);
  for (int i = 0; i < 499; ++i) EXPECT(out.get()[i] == 101 + 2 * i);
  const auto flags = thrust::make_transform_iterator(numbers, IsOdd());
  EXPECT(with_storage([&](void* p, size_t& bytes) {
           return cub::DeviceSelect::Flagged(p, bytes, thrust::make_counting_iterator(7), flags,
                                             out.data(), count.data(), 10);
         }) == cudaSuccess);
  EXPECT(count.get()[0] == 5 && out.get()[0] == 8 && out.get()[4] == 16);
}

CHECK(cub_scan) {
  const size_t n = 1000;
  std::vector<unsigned char> in(n);
  for (size_t i = 0; i < n; ++i) in[i] = static_cast<unsigned char>(draw(i));
  std::vector<int64_t> want(n + 1);
  for (size_t i = 0; i < n; ++i) want[i + 1] = want[i] + in[i];
  Array<unsigned char> x(in);
  Array<int64_t> out(n);
  EXPECT(with_storage([&](void* p, size_t& bytes) {
           return cub::DeviceScan::ExclusiveSum(p, bytes, x.data(), out.data(), n);
         }) == cudaSuccess);
  EXPECT(out.get() == std::vector<int64_t>(want.begin(), want.end() - 1));
  EXPECT(with_storage([&](void* p, size_t& bytes) {
           return cub::DeviceScan::InclusiveSum(p, bytes, x.data(), out.data(), n, nullptr);
         }) == cudaSuccess);
  EXPECT(out.get() == std::vector<int64_t>(want.begin() + 1, want.end()));
  Array<int64_t> both(std::vector<int64_t>(3, 5));
  EXPECT(with_storage([&](void* p, size_t& bytes) {
           return cub::DeviceScan::ExclusiveSum(p, bytes, both.data(), both.data(), 3);
         }) == cudaSuccess);
  EXPECT(both.get() == (std::vector<int64_t>{0, 5, 10}));
}

CHECK(cub_reduce) {
  const std::vector<int> in{3, -9, 12, 4, 12, 12, 4};
  Array<int> x(in), unique(7), lengths(7), count(1);
  Array<int64_t> sum(1);
  EXPECT(with_storage([&](void* p, size_t& bytes) {
           return cub::DeviceReduce::Sum(p, bytes, x.data(), sum.data(), 7);
         }) == cudaSuccess);
  EXPECT(sum.get()[0] == 38);
  EXPECT(with_storage([&](void* p, size_t& bytes) {
           return cub::DeviceReduce::Max(p, bytes, x.data(), count.data(), 7);
         }) == cudaSuccess);
  EXPECT(count.get()[0] == 12);
  EXPECT(with_storage([&](void* p, size_t& bytes) {
           return cub::DeviceRunLengthEncode::Encode(p, bytes, x.data(), unique.data(),
                                                     lengths.data(), count.data(), 7);
         }) == cudaSuccess);
  EXPECT(count.get()[0] == 6);
  EXPECT(unique.get() == (std::vector<int>{3, -9, 12, 4, 12, 4, 0}));
  EXPECT(lengths.get() == (std::vector<int>{1, 1, 1, 1, 2, 1, 0}));
}

CHECK(cub_storage) {
  Array<uint32_t> in(100), out(100);
  size_t bytes = 0;
  cub::DeviceRadixSort::SortKeys(nullptr, bytes, in.data(), out.data(), 100);
  Array<char> storage(bytes);
  size_t less = bytes - 1;
  EXPECT(cub::DeviceRadixSort::SortKeys(storage.data(), less, in.data(), out.data(), 100) ==
         cudaErrorInvalidValue);
#if defined(MPE_SIMT)  // hardware does not notice this
  Array<char> small(16);
  EXPECT(cub::DeviceRadixSort::SortKeys(small.data(), bytes, in.data(), out.data(), 100) ==
         cudaErrorInvalidValue);
  EXPECT(cub::DeviceRadixSort::SortKeys(storage.data(), bytes, in.data(), in.data(), 100) ==
         cudaErrorInvalidValue);
#endif
  EXPECT(cudaGetLastError() == cudaErrorInvalidValue && cudaGetLastError() == cudaSuccess);
}

}  // namespace
