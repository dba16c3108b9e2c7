// The 16-bit draws of a whole row, several Philox blocks at a time.
//
// A block's four counter words sit in the low halves of 64-bit lanes: the widening multiply reads
// only those, and what is left in the high halves never matters.
#pragma once

#include "mpembed/philox.h"

#if defined(__SSE2__)
#include <immintrin.h>
#endif

MPE_BEGIN

#if defined(__AVX2__)
constexpr int kDrawLanes = 4;
#else
constexpr int kDrawLanes = 2;
#endif
typedef uint64_t DrawLanes __attribute__((vector_size(kDrawLanes * 8)));

inline DrawLanes multiply_low_halves(DrawLanes a, DrawLanes b) {
#if defined(__AVX2__)
  return (DrawLanes)_mm256_mul_epu32((__m256i)a, (__m256i)b);
#elif defined(__SSE2__)
  return (DrawLanes)_mm_mul_epu32((__m128i)a, (__m128i)b);
#else
  return (a & 0xFFFFFFFFu) * (b & 0xFFFFFFFFu);
#endif
}

// kDrawLanes blocks from `first` on; `blocks` of them are stored.
inline void draw_blocks(const RowStream& s, int64_t first, int64_t blocks, uint16_t* r) {
  const DrawLanes zero = {};
  DrawLanes c0 = zero, c1 = zero + s.c1, c2 = zero + s.c2, c3 = zero + s.c3;
  for (int l = 0; l < kDrawLanes; ++l) c0[l] = s.c0 | static_cast<uint32_t>(first + l);
  const DrawLanes m0 = zero + uint64_t{0xD2511F53u}, m1 = zero + uint64_t{0xCD9E8D57u};
  uint32_t k0 = static_cast<uint32_t>(s.seed), k1 = static_cast<uint32_t>(s.seed >> 32);
  for (int i = 0; i < 10; ++i) {
    const DrawLanes p0 = multiply_low_halves(c0, m0), p1 = multiply_low_halves(c2, m1);
    c0 = (p1 >> 32) ^ c1 ^ (zero + k0);
    c1 = p1;
    c2 = (p0 >> 32) ^ c3 ^ (zero + k1);
    c3 = p0;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  const DrawLanes low = (c0 & 0xFFFFFFFFu) | (c1 << 32), high = (c2 & 0xFFFFFFFFu) | (c3 << 32);
  for (int64_t l = 0; l < blocks; ++l) {
    const uint64_t words[2] = {low[l], high[l]};
    memcpy(r + l * 8, words, sizeof words);
  }
}

// r has room for dim rounded up to 8.
inline void fill_draw16(const RowStream& s, int64_t dim, uint16_t* r) {
  const int64_t blocks = (dim + 7) / 8;
  for (int64_t b = 0; b < blocks; b += kDrawLanes) {
    draw_blocks(s, b, blocks - b < kDrawLanes ? blocks - b : kDrawLanes, r + b * 8);
  }
}

MPE_END
