// Warp collectives.
#ifndef SIMT_EMU_WARP_H
#define SIMT_EMU_WARP_H

#include <string.h>

#include "emu/engine.h"

namespace simt {

template <class T>
inline uint64_t to_bits(T v) {
  uint64_t bits = 0;
  memcpy(&bits, &v, sizeof v);
  return bits;
}

template <class T>
inline T from_bits(uint64_t bits) {
  T v;
  memcpy(&v, &bits, sizeof v);
  return v;
}

}  // namespace simt

// The types of CUDA's overloads. As with nvcc, others convert or are ambiguous.
#define SIMT_SHUFFLES(T)                                                                          \
  inline T __shfl_sync(unsigned mask, T v, int lane, int width = 32,                              \
                       simt::Site site = simt::Site::here()) {                                    \
    return simt::from_bits<T>(                                                                    \
        simt::collective(simt::Op::kShuffle, mask, simt::to_bits(v), lane, width, site));         \
  }                                                                                               \
  inline T __shfl_up_sync(unsigned mask, T v, unsigned delta, int width = 32,                     \
                          simt::Site site = simt::Site::here()) {                                 \
    return simt::from_bits<T>(simt::collective(simt::Op::kShuffleUp, mask, simt::to_bits(v),      \
                                               static_cast<int>(delta), width, site));            \
  }                                                                                               \
  inline T __shfl_down_sync(unsigned mask, T v, unsigned delta, int width = 32,                   \
                            simt::Site site = simt::Site::here()) {                               \
    return simt::from_bits<T>(simt::collective(simt::Op::kShuffleDown, mask, simt::to_bits(v),    \
                                               static_cast<int>(delta), width, site));            \
  }                                                                                               \
  inline T __shfl_xor_sync(unsigned mask, T v, int lane_mask, int width = 32,                     \
                           simt::Site site = simt::Site::here()) {                                \
    return simt::from_bits<T>(                                                                    \
        simt::collective(simt::Op::kShuffleXor, mask, simt::to_bits(v), lane_mask, width, site)); \
  }

#define SIMT_MATCHES(T)                                                                        \
  inline unsigned __match_any_sync(unsigned mask, T v, simt::Site site = simt::Site::here()) { \
    return static_cast<unsigned>(                                                              \
        simt::collective(simt::Op::kMatchAny, mask, simt::to_bits(v), 0, 32, site));           \
  }                                                                                            \
  inline unsigned __match_all_sync(unsigned mask, T v, int* same,                              \
                                   simt::Site site = simt::Site::here()) {                     \
    const uint64_t all =                                                                       \
        simt::collective(simt::Op::kMatchAll, mask, simt::to_bits(v), 0, 32, site);            \
    *same = all != 0;                                                                          \
    return static_cast<unsigned>(all);                                                         \
  }

#define SIMT_EACH(T) SIMT_SHUFFLES(T) SIMT_MATCHES(T)
SIMT_EACH(int)
SIMT_EACH(unsigned)
SIMT_EACH(long)
SIMT_EACH(unsigned long)
SIMT_EACH(long long)
SIMT_EACH(unsigned long long)
SIMT_EACH(float)
SIMT_EACH(double)
#undef SIMT_EACH
#undef SIMT_MATCHES
#undef SIMT_SHUFFLES

inline void __syncwarp(unsigned mask = 0xFFFFFFFFu, simt::Site site = simt::Site::here()) {
  simt::collective(simt::Op::kSyncWarp, mask, 0, 0, 32, site);
}

inline unsigned __ballot_sync(unsigned mask, int predicate, simt::Site site = simt::Site::here()) {
  return static_cast<unsigned>(
      simt::collective(simt::Op::kBallot, mask, predicate != 0, 0, 32, site));
}
inline int __any_sync(unsigned mask, int predicate, simt::Site site = simt::Site::here()) {
  return simt::collective(simt::Op::kAny, mask, predicate != 0, 0, 32, site) != 0;
}
inline int __all_sync(unsigned mask, int predicate, simt::Site site = simt::Site::here()) {
  return simt::collective(simt::Op::kAll, mask, predicate != 0, 0, 32, site) != 0;
}

// Lanes are never converged here, so only the caller's bit is set.
inline unsigned __activemask() { return 1u << simt::lane_id(); }

#define SIMT_REDUCE(name, T, op)                                                          \
  inline T name(unsigned mask, T v, simt::Site site = simt::Site::here()) {               \
    return simt::from_bits<T>(simt::collective(op, mask, simt::to_bits(v), 0, 32, site)); \
  }
SIMT_REDUCE(__reduce_add_sync, unsigned, simt::Op::kReduceAdd)
SIMT_REDUCE(__reduce_add_sync, int, simt::Op::kReduceAdd)
SIMT_REDUCE(__reduce_min_sync, unsigned, simt::Op::kReduceMinU)
SIMT_REDUCE(__reduce_min_sync, int, simt::Op::kReduceMinS)
SIMT_REDUCE(__reduce_max_sync, unsigned, simt::Op::kReduceMaxU)
SIMT_REDUCE(__reduce_max_sync, int, simt::Op::kReduceMaxS)
SIMT_REDUCE(__reduce_and_sync, unsigned, simt::Op::kReduceAnd)
SIMT_REDUCE(__reduce_or_sync, unsigned, simt::Op::kReduceOr)
SIMT_REDUCE(__reduce_xor_sync, unsigned, simt::Op::kReduceXor)
#undef SIMT_REDUCE

#endif
