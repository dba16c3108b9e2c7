// cub::DeviceScan, DeviceSelect, DeviceReduce and DeviceRunLengthEncode.
#ifndef SIMT_EMU_CUB_SCAN_H
#define SIMT_EMU_CUB_SCAN_H

#include <cstdio>
#include <limits>
#include <vector>

#include "emu/cub/common.h"

namespace simt {

inline size_t scan_storage(int64_t n) { return 512 + (n < 0 ? 0 : static_cast<size_t>(n) / 64); }

template <class In, class Out>
cudaError_t scan(void* storage, size_t& bytes, In in, Out out, int64_t n, bool inclusive,
                 cudaStream_t stream) {
  return cub_call(storage, bytes, scan_storage(n), n, stream, [=] {
    using T = ValueOf<In>;
    // As CUB accumulates: in the type of a sum of two items.
    decltype(T() + T()) sum{};
    for (int64_t i = 0; i < n; ++i) {
      const auto before = sum;
      sum = sum + static_cast<T>(in[i]);  // read before out[i] is written: they may be the same
      out[i] = static_cast<ValueOf<Out>>(inclusive ? sum : before);
    }
  });
}

template <class In, class Out, class Count, class Keep>
cudaError_t select(void* storage, size_t& bytes, In in, Out out, Count count, int64_t n, Keep keep,
                   cudaStream_t stream) {
  return cub_call(storage, bytes, scan_storage(n), n, stream, [=] {
    int64_t selected = 0;
    for (int64_t i = 0; i < n; ++i) {
      const ValueOf<In> item = in[i];
      if (keep(i, item)) out[selected++] = item;
    }
    *count = static_cast<std::decay_t<decltype(*count)>>(selected);
  });
}

}  // namespace simt

namespace cub {

struct DeviceScan {
  template <class In, class Out, class N>
  static cudaError_t ExclusiveSum(void* storage, size_t& bytes, In in, Out out, N n,
                                  cudaStream_t stream = nullptr) {
    return simt::scan(storage, bytes, in, out, static_cast<int64_t>(n), false, stream);
  }
  template <class In, class N>
  static cudaError_t ExclusiveSum(void* storage, size_t& bytes, In in_out, N n,
                                  cudaStream_t stream = nullptr) {
    return simt::scan(storage, bytes, in_out, in_out, static_cast<int64_t>(n), false, stream);
  }
  template <class In, class Out, class N>
  static cudaError_t InclusiveSum(void* storage, size_t& bytes, In in, Out out, N n,
                                  cudaStream_t stream = nullptr) {
    return simt::scan(storage, bytes, in, out, static_cast<int64_t>(n), true, stream);
  }
  template <class In, class N>
  static cudaError_t InclusiveSum(void* storage, size_t& bytes, In in_out, N n,
                                  cudaStream_t stream = nullptr) {
    return simt::scan(storage, bytes, in_out, in_out, static_cast<int64_t>(n), true, stream);
  }
};

struct DeviceSelect {
  template <class In, class Out, class Count, class Predicate>
  static cudaError_t If(void* storage, size_t& bytes, In in, Out out, Count num_selected, int64_t n,
                        Predicate predicate, cudaStream_t stream = nullptr) {
    return simt::select(
        storage, bytes, in, out, num_selected, n,
        [=](int64_t, const simt::ValueOf<In>& item) { return static_cast<bool>(predicate(item)); },
        stream);
  }
  template <class In, class Flags, class Out, class Count>
  static cudaError_t Flagged(void* storage, size_t& bytes, In in, Flags flags, Out out,
                             Count num_selected, int64_t n, cudaStream_t stream = nullptr) {
    return simt::select(
        storage, bytes, in, out, num_selected, n,
        [=](int64_t i, const simt::ValueOf<In>&) { return static_cast<bool>(flags[i]); }, stream);
  }
};

struct DeviceReduce {
  template <class In, class Out, class N>
  static cudaError_t Sum(void* storage, size_t& bytes, In in, Out out, N n,
                         cudaStream_t stream = nullptr) {
    using T = simt::ValueOf<Out>;
    return reduce(storage, bytes, in, out, n, stream, T{}, [](auto a, auto b) { return a + b; });
  }
  template <class In, class Out, class N>
  static cudaError_t Max(void* storage, size_t& bytes, In in, Out out, N n,
                         cudaStream_t stream = nullptr) {
    using T = simt::ValueOf<In>;
    return reduce(storage, bytes, in, out, n, stream, std::numeric_limits<T>::lowest(),
                  [](T a, T b) { return a < b ? b : a; });
  }
  template <class In, class Out, class N>
  static cudaError_t Min(void* storage, size_t& bytes, In in, Out out, N n,
                         cudaStream_t stream = nullptr) {
    using T = simt::ValueOf<In>;
    return reduce(storage, bytes, in, out, n, stream, std::numeric_limits<T>::max(),
                  [](T a, T b) { return b < a ? b : a; });
  }

 private:
  template <class In, class Out, class N, class T, class F>
  static cudaError_t reduce(void* storage, size_t& bytes, In in, Out out, N n, cudaStream_t stream,
                            T initial, F f) {
    const int64_t count = static_cast<int64_t>(n);
    return simt::cub_call(storage, bytes, simt::scan_storage(count), count, stream, [=] {
      auto value = initial;
      for (int64_t i = 0; i < count; ++i) {
        value = static_cast<T>(f(value, static_cast<simt::ValueOf<In>>(in[i])));
      }
      *out = static_cast<simt::ValueOf<Out>>(value);
    });
  }
};

struct DeviceRunLengthEncode {
  template <class In, class Unique, class Lengths, class Count, class N>
  static cudaError_t Encode(void* storage, size_t& bytes, In in, Unique unique, Lengths lengths,
                            Count num_runs, N n, cudaStream_t stream = nullptr) {
    const int64_t count = static_cast<int64_t>(n);
    return simt::cub_call(storage, bytes, simt::scan_storage(count), count, stream, [=] {
      int64_t runs = 0;
      for (int64_t begin = 0, end; begin < count; begin = end) {
        const simt::ValueOf<In> item = in[begin];
        for (end = begin + 1; end < count && in[end] == item;) ++end;
        unique[runs] = item;
        lengths[runs++] = static_cast<std::decay_t<decltype(lengths[0])>>(end - begin);
      }
      *num_runs = static_cast<std::decay_t<decltype(*num_runs)>>(runs);
    });
  }
};

}  // namespace cub

#endif
