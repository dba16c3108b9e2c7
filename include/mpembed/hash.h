// Hashes of linear row ids: the cache set and the sketch cells (docs/numerics.md, section 6).
#ifndef MPEMBED_HASH_H
#define MPEMBED_HASH_H

#include "mpembed/macros.h"

MPE_BEGIN

MPE_HD uint64_t splitmix64(uint64_t id) {
  uint64_t z = id + 0x9E3779B97F4A7C15ull;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
  return z ^ (z >> 31);
}

// num_sets < 2^32.
MPE_HD uint64_t cache_set(uint64_t hash, uint64_t num_sets) {
  return ((hash >> 32) * num_sets) >> 32;
}

// Cell of sketch row j (0..3); width is a power of two.
MPE_HD uint32_t sketch_cell(uint64_t hash, uint32_t j, uint64_t width) {
  const uint32_t a = static_cast<uint32_t>(hash);
  const uint32_t b = static_cast<uint32_t>(hash >> 32) | 1u;
  return static_cast<uint32_t>((a + j * b) & (width - 1));
}

MPE_END

#endif
