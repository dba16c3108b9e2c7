// The 16-bit draws of whole rows, many Philox blocks at a time.
//
// A block's four counter words lie in the low halves of 64-bit lanes. The widening multiply reads
// only those, so what remains in the high halves never matters.
#pragma once

#include "cpu/lanes.h"
#include "mpembed/philox.h"

MPE_BEGIN

constexpr int kDrawLanes = kLanes / 2;
typedef uint64_t DrawLanes __attribute__((vector_size(kDrawLanes * 8)));

inline DrawLanes multiply_low_halves(DrawLanes a, DrawLanes b) {
#if defined(__AVX512F__)
  // Not _mm512_mul_epu32: GCC 12 warns of an undefined value in it.
  return (DrawLanes)_mm512_maskz_mul_epu32(0xFF, (__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
  return (DrawLanes)_mm256_mul_epu32((__m256i)a, (__m256i)b);
#elif defined(__SSE2__)
  return (DrawLanes)_mm_mul_epu32((__m128i)a, (__m128i)b);
#else
  return (a & 0xFFFFFFFFu) * (b & 0xFFFFFFFFu);
#endif
}

// Counter words of kDrawLanes blocks.
struct DrawCounters {
  DrawLanes c0, c1, c2, c3;
};

// kVectors * kDrawLanes blocks at once: a round's steps wait for one another, vectors do not.
template <int kVectors>
inline void philox_rounds(uint64_t seed, DrawCounters* counters) {
  const DrawLanes zero = {};
  const DrawLanes m0 = zero + uint64_t{0xD2511F53u}, m1 = zero + uint64_t{0xCD9E8D57u};
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
  for (int i = 0; i < 10; ++i) {
    const DrawLanes key0 = zero + k0, key1 = zero + k1;
    for (int v = 0; v < kVectors; ++v) {
      DrawCounters& c = counters[v];
      const DrawLanes p0 = multiply_low_halves(c.c0, m0), p1 = multiply_low_halves(c.c2, m1);
      c.c0 = (p1 >> 32) ^ c.c1 ^ key0;
      c.c1 = p1;
      c.c2 = (p0 >> 32) ^ c.c3 ^ key1;
      c.c3 = p0;
    }
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
}

// The draws of kDrawLanes blocks in the order of the blocks.
inline void store_draws(const DrawCounters& words, uint16_t* draws) {
  const DrawLanes low = (words.c0 & 0xFFFFFFFFu) | (words.c1 << 32);
  const DrawLanes high = (words.c2 & 0xFFFFFFFFu) | (words.c3 << 32);
#if defined(__AVX512F__)
  const __m512i first = _mm512_setr_epi64(0, 8, 1, 9, 2, 10, 3, 11);
  const __m512i second = _mm512_setr_epi64(4, 12, 5, 13, 6, 14, 7, 15);
  const __m512i a = (__m512i)low, b = (__m512i)high;
  _mm512_storeu_si512(draws, _mm512_permutex2var_epi64(a, first, b));
  _mm512_storeu_si512(draws + 32, _mm512_permutex2var_epi64(a, second, b));
#else
  for (int i = 0; i < kDrawLanes; ++i) {
    const uint64_t block[2] = {low[i], high[i]};
    memcpy(draws + i * 8, block, sizeof block);
  }
#endif
}

// Collects blocks of rows of one seed, and draws for all of them together.
class DrawBatch {
 public:
  static constexpr int kVectors = 2;
  static constexpr int64_t kBlocksAtOnce = kVectors * kDrawLanes;
  static constexpr int64_t kCapacity = 256;  // blocks

  // Adds blocks of a row, from `first` on.
  void add(const RowStream& stream, int64_t first, int64_t blocks) {
    for (int64_t b = 0; b < blocks; ++b) {
      c0_[n_] = stream.c0 | static_cast<uint32_t>(first + b);
      c1_[n_] = stream.c1;
      c2_[n_] = stream.c2;
      c3_[n_++] = stream.c3;
    }
  }

  // Draws for all blocks and empties the batch. draws: room for 8 of each block, rounded up to
  // kBlocksAtOnce blocks.
  void run(uint64_t seed, uint16_t* draws) {
    for (int64_t b = n_; b % kBlocksAtOnce != 0; ++b) c0_[b] = c1_[b] = c2_[b] = c3_[b] = 0;
    for (int64_t b = 0; b < n_; b += kBlocksAtOnce) {
      DrawCounters counters[kVectors];
      for (int v = 0; v < kVectors; ++v) {
        const int64_t at = b + v * kDrawLanes;
        counters[v] = DrawCounters{load(c0_ + at), load(c1_ + at), load(c2_ + at), load(c3_ + at)};
      }
      philox_rounds<kVectors>(seed, counters);
      for (int v = 0; v < kVectors; ++v) {
        store_draws(counters[v], draws + (b + v * kDrawLanes) * 8);
      }
    }
    n_ = 0;
  }

 private:
  static DrawLanes load(const uint64_t* p) {
    DrawLanes lanes;
    memcpy(&lanes, p, sizeof lanes);
    return lanes;
  }

  int64_t n_ = 0;
  alignas(64) uint64_t c0_[kCapacity], c1_[kCapacity], c2_[kCapacity], c3_[kCapacity];
};

MPE_END
