// Any bytes as a packed row of any format: decoded, encoded again and decoded again, by the headers
// alone. Any floats as a row's values. Three bytes choose the format, the columns and what to do.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>

#include "mpembed/registry_types.h"
#include "target.h"

using namespace mpembed;

namespace {

// Memory of just so many elements, so that an access beyond them is found.
template <class T>
struct Exact {
  explicit Exact(int64_t n) : count(n), at(new T[static_cast<size_t>(n)]()) {}
  T* get() const { return at.get(); }
  T& operator[](int64_t i) const { return at[static_cast<size_t>(i)]; }
  const int64_t count;
  const std::unique_ptr<T[]> at;
};

// The input, read from its front; zeros follow its end.
struct Bytes {
  const uint8_t* data;
  size_t size;

  void copy(void* to, size_t count) {
    const size_t n = std::min(count, size);
    if (n > 0) memcpy(to, data, n);
    data += n, size -= n;
  }
  uint8_t one() {
    uint8_t byte = 0;
    copy(&byte, 1);
    return byte;
  }
};

bool same(float a, float b) { return float_bits(a) == float_bits(b) || (a != a && b != b); }

fuzz::Count storable("storable");

template <class F>
struct Row {
  explicit Row(int64_t columns) : dim(columns), bytes(F::row_bytes(columns)) {}

  // Both readers agree.
  void decode(const Exact<float>& x) const {
    int64_t next = 0;
    F::for_each(bytes.get(), dim, [&](int64_t c, float v) {
      FUZZ_HOLDS(c == next++);
      x[c] = v;
    });
    FUZZ_HOLDS(next == dim);
    const auto header = F::header(bytes.get(), dim);
    for (int64_t c = 0; c < dim; ++c) FUZZ_HOLDS(same(F::value(bytes.get(), header, c), x[c]));
  }

  // The largest distance of a value from what its row gives back; one code's width a step.
  double allowed(const Exact<float>& x, double steps) const {
    double most = 0;
    for (int64_t c = 0; c < dim; ++c) most = std::max(most, std::fabs(double{x[c]}));
    if constexpr (F::kHeaderBytes > 0) {
      const double range = bits_float(F::kRangeBits);
      const double scale = std::fabs(double{F::header(bytes.get(), dim).scale});
      return steps * scale * (1 + 0x1p-10) + std::ldexp(most, -21) + std::max(0.0, most - range);
    } else if (F::kExact) {
      return 0;
    } else {  // the second is how far the smallest numbers of the type lie apart
      const bool fp16 = F::kMaxAbsBits == Fp16::kMaxAbsBits;
      const double step = std::ldexp(most, fp16 ? -10 : -7);
      return steps * std::max(step, fp16 ? 0x1p-24 : 0x1p-133);
    }
  }

  void check_pad_bits() const {
    for (int64_t bit = dim * F::kBitsPerCode; bit < 8 * F::code_bytes(dim); ++bit) {
      FUZZ_HOLDS((bytes[bit / 8] >> (bit % 8) & 1) == 0);
    }
  }

  void check_written(const Exact<float>& x, double steps) const {
    const Exact<float> back(dim);
    decode(back);
    check_pad_bits();
    const double most = allowed(x, steps);
    for (int64_t c = 0; c < dim; ++c) {
      FUZZ_HOLDS(std::isfinite(back[c]));
      FUZZ_HOLDS(std::fabs(double{back[c]} - double{x[c]}) <= most);
    }
  }

  const int64_t dim;
  const Exact<uint8_t> bytes;
};

template <class F>
bool is_storable(const Exact<float>& x) {
  for (int64_t c = 0; c < x.count; ++c) {
    if ((float_bits(x[c]) & 0x7FFFFFFFu) > F::kMaxAbsBits) return false;
  }
  return true;
}

template <class F>
void check_row(int64_t dim, bool floats, Bytes input) {
  const Row<F> row(dim);
  const Exact<float> x(dim);
  if (floats) {
    input.copy(x.get(), static_cast<size_t>(dim) * sizeof(float));
  } else {
    input.copy(row.bytes.get(), static_cast<size_t>(row.bytes.count));
    row.decode(x);
  }
  if (!is_storable<F>(x)) return;
  ++storable.value;
  const Row<F> other(dim);
  F::encode(x.get(), dim, other.bytes.get(), nullptr);
  other.check_written(x, 0.5);
  const Exact<uint16_t> draws(dim);
  input.copy(draws.get(), static_cast<size_t>(dim) * sizeof(uint16_t));
  F::encode(x.get(), dim, other.bytes.get(), draws.get());
  other.check_written(x, 1);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Bytes input{data, size};
  const int32_t format = input.one() % MPE_NUM_FORMATS;
  const int64_t dim = 1 + input.one() % 70;
  const bool floats = input.one() % 2 != 0;
  with_format(format, [&](auto f) { check_row<decltype(f)>(dim, floats, input); });
  return 0;
}
