// Vectors of values as wide as the instruction set's registers, with the operations that the
// arithmetic of include/mpembed/ is written in.
#pragma once

#include "mpembed/lanes.h"
#include "mpembed/reduce.h"

#if defined(__SSE2__)
#include <immintrin.h>
#endif

MPE_BEGIN

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

#define MPE_LANE_OP(Type, op) \
  friend inline Type operator op(Type a, Type b) { return Type(a.v op b.v); }

struct Ints {
  typedef int32_t Vector __attribute__((vector_size(kLanes * 4)));
  Vector v;

  Ints(int32_t value) : v(Vector{} + value) {}
  explicit Ints(Vector lanes) : v(lanes) {}

  static Ints load(const int32_t* p) {
    Vector lanes;
    memcpy(&lanes, p, sizeof lanes);
    return Ints(lanes);
  }
  void store(int32_t* p) const { memcpy(p, &v, sizeof v); }

  MPE_LANE_OP(Ints, +)
  MPE_LANE_OP(Ints, -)
  MPE_LANE_OP(Ints, &)
  MPE_LANE_OP(Ints, |)
  MPE_LANE_OP(Ints, >)
  MPE_LANE_OP(Ints, ==)
  friend inline Ints operator>>(Ints a, int n) { return Ints(a.v >> n); }
  friend inline Ints operator<<(Ints a, int n) { return Ints(a.v << n); }
  friend inline Ints larger(Ints a, Ints b) { return Ints(a.v > b.v ? a.v : b.v); }
  // chosen: all bits or none, from a comparison.
  friend inline Ints select(Ints chosen, Ints a, Ints b) { return Ints(chosen.v ? a.v : b.v); }
  friend inline Ints clamp(Ints x, Ints low, Ints high) {
    const Vector up = x.v < low.v ? low.v : x.v;
    return Ints(up > high.v ? high.v : up);
  }
};

struct Floats {
  typedef float Vector __attribute__((vector_size(kLanes * 4)));
  Vector v;

  Floats() : v{} {}
  Floats(float value) : v(value - Vector{}) {}  // minus keeps a negative zero
  explicit Floats(Vector lanes) : v(lanes) {}

  static Floats load(const float* p) {
    Vector lanes;
    memcpy(&lanes, p, sizeof lanes);
    return Floats(lanes);
  }
  void store(float* p) const { memcpy(p, &v, sizeof v); }
  // The first n lanes, fewer than all; the others are zero.
  static Floats load_some(const float* p, int64_t n) {
    Vector lanes{};
    memcpy(&lanes, p, static_cast<size_t>(n) * sizeof(float));
    return Floats(lanes);
  }

  MPE_LANE_OP(Floats, +)
  MPE_LANE_OP(Floats, -)
  MPE_LANE_OP(Floats, *)
  MPE_LANE_OP(Floats, /)
  friend inline Floats operator-(Floats a) { return Floats(-a.v); }
  friend inline Ints operator>(Floats a, Floats b) { return Ints(a.v > b.v); }
  friend inline Ints operator<(Floats a, Floats b) { return Ints(a.v < b.v); }
  friend inline Ints operator==(Floats a, Floats b) { return Ints(a.v == b.v); }
  friend inline Floats select(Ints chosen, Floats a, Floats b) {
    return Floats(chosen.v ? a.v : b.v);
  }
  friend inline Floats smaller(Floats a, Floats b) { return Floats(a.v < b.v ? a.v : b.v); }
  friend inline Floats larger(Floats a, Floats b) { return Floats(a.v > b.v ? a.v : b.v); }
};

#undef MPE_LANE_OP

inline Ints to_int(Floats x) { return Ints(__builtin_convertvector(x.v, Ints::Vector)); }
inline Floats to_float(Ints x) { return Floats(__builtin_convertvector(x.v, Floats::Vector)); }
inline Ints int_bits(Floats x) { return Ints(reinterpret_cast<Ints::Vector>(x.v)); }
inline Floats bits_value(Ints bits) { return Floats(reinterpret_cast<Floats::Vector>(bits.v)); }

// True in the first n lanes.
inline Ints first_lanes(int64_t n) {
  Ints::Vector lane{};
  for (int i = 0; i < kLanes; ++i) lane[i] = i;
  return Ints(static_cast<int32_t>(n)) > Ints(lane);
}

// Bytes and 16-bit words, a lane each. Compilers widen single elements where widening takes more
// than one step, hence the intrinsics.
typedef uint8_t LaneBytes __attribute__((vector_size(kLanes)));
typedef uint16_t LaneHalves __attribute__((vector_size(kLanes * 2)));

inline Ints widen(LaneBytes bytes) {
#if defined(__AVX512F__)
  return Ints((Ints::Vector)_mm512_maskz_cvtepu8_epi32(0xFFFF, (__m128i)bytes));
#elif defined(__AVX2__)
  uint64_t low;
  memcpy(&low, &bytes, sizeof low);
  return Ints((Ints::Vector)_mm256_cvtepu8_epi32(_mm_cvtsi64_si128(static_cast<int64_t>(low))));
#else
  return Ints(__builtin_convertvector(bytes, Ints::Vector));
#endif
}

inline Ints widen(LaneHalves halves) {
#if defined(__AVX512F__)
  return Ints((Ints::Vector)_mm512_maskz_cvtepu16_epi32(0xFFFF, (__m256i)halves));
#elif defined(__AVX2__)
  return Ints((Ints::Vector)_mm256_cvtepu16_epi32((__m128i)halves));
#else
  return Ints(__builtin_convertvector(halves, Ints::Vector));
#endif
}

inline Ints load_halves(const void* p) {
  LaneHalves halves;
  memcpy(&halves, p, sizeof halves);
  return widen(halves);
}

inline void store_halves(Ints codes, void* p) {
  const LaneHalves halves = __builtin_convertvector(codes.v, LaneHalves);
  memcpy(p, &halves, sizeof halves);
}

#if defined(__F16C__) && defined(__AVX2__)  // as exact as the templates of round.h, except for NaNs
inline Floats half_value(Ints codes) {
  const LaneHalves halves = __builtin_convertvector(codes.v, LaneHalves);
#if defined(__AVX512F__)
  return Floats((Floats::Vector)_mm512_maskz_cvtph_ps(0xFFFF, (__m256i)halves));
#else
  return Floats((Floats::Vector)_mm256_cvtph_ps((__m128i)halves));
#endif
}
inline Ints half_code_of_any(Floats x) {
#if defined(__AVX512F__)
  return widen((LaneHalves)_mm512_maskz_cvtps_ph(0xFFFF, (__m512)x.v, _MM_FROUND_TO_NEAREST_INT));
#else
  return widen((LaneHalves)_mm256_cvtps_ph((__m256)x.v, _MM_FROUND_TO_NEAREST_INT));
#endif
}
#endif

inline bool any(Ints x) {
#if defined(__AVX512F__)
  return _mm512_test_epi32_mask((__m512i)x.v, (__m512i)x.v) != 0;
#elif defined(__AVX2__)
  return _mm256_testz_si256((__m256i)x.v, (__m256i)x.v) == 0;
#else
  int32_t all = 0;
  for (int i = 0; i < kLanes; ++i) all |= x.v[i];
  return all != 0;
#endif
}

inline Floats root(Floats x) {
#if defined(__AVX512F__)
  return Floats((Floats::Vector)_mm512_maskz_sqrt_ps(0xFFFF, x.v));
#elif defined(__AVX2__)
  return Floats((Floats::Vector)_mm256_sqrt_ps(x.v));
#else
  Floats::Vector result;
  for (int i = 0; i < kLanes; ++i) result[i] = sqrtf(x.v[i]);
  return Floats(result);
#endif
}

inline Floats fused(Floats a, Floats b, Floats c) {
#if defined(__AVX512F__)
  return Floats((Floats::Vector)_mm512_fmadd_ps(a.v, b.v, c.v));
#elif defined(__FMA__) && defined(__AVX2__)
  return Floats((Floats::Vector)_mm256_fmadd_ps(a.v, b.v, c.v));
#else
  Floats::Vector result;
  for (int i = 0; i < kLanes; ++i) result[i] = fmaf(a.v[i], b.v[i], c.v[i]);
  return Floats(result);
#endif
}

// See include/mpembed/lanes.h.
inline Floats about(Floats a, Floats b, Floats c) {
#if defined(__AVX512F__) || (defined(__FMA__) && defined(__AVX2__))
  return fused(a, b, c);
#else
  return a * b + c;
#endif
}

// Copies n values by vectors: a call of memcpy costs more than a short row. `to` needs no
// alignment.
inline void copy_floats(const float* from, void* to, int64_t n) {
  char* const out = static_cast<char*>(to);
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    const Floats values = Floats::load(from + i);
    memcpy(out + i * 4, &values.v, sizeof values.v);
  }
  for (; i < n; ++i) memcpy(out + i * 4, from + i, sizeof(float));
}

// Lane i gets the value of lane i ^ kDistance.
template <int kDistance>
inline Floats exchange(Floats x) {
#if defined(__clang__)
  Floats::Vector result;
  for (int i = 0; i < kLanes; ++i) result[i] = x.v[i ^ kDistance];
  return Floats(result);
#else
  Ints::Vector from{};
  for (int i = 0; i < kLanes; ++i) from[i] = i ^ kDistance;
  return Floats(__builtin_shuffle(x.v, from));
#endif
}

// Combines all lanes by an operation whose order does not matter.
template <class Op>
inline float fold(Floats x, Op op) {
  if constexpr (kLanes > 8) x = op(x, exchange<8>(x));
  if constexpr (kLanes > 4) x = op(x, exchange<4>(x));
  x = op(x, exchange<2>(x));
  return op(x, exchange<1>(x)).v[0];
}

// The sum of squares of a row in lane-tree order. dim: a multiple of kLanes; what lies beyond the
// row's columns is zero and adds nothing.
inline float square_sum(const float* x, int64_t dim) {
  constexpr int kSums = kTreeLanes / kLanes;
  Floats sums[kSums];
  for (int64_t c = 0; c < dim; c += kTreeLanes) {
    for (int v = 0; v < kSums && c + v * kLanes < dim; ++v) {
      const Floats values = Floats::load(x + c + v * kLanes);
      sums[v] = fused(values, values, sums[v]);
    }
  }
  for (int half = kSums / 2; half > 0; half /= 2) {
    for (int v = 0; v < half; ++v) sums[v] = sums[v] + sums[v + half];
  }
  return fold(sums[0], [](Floats a, Floats b) { return a + b; });
}

MPE_END
