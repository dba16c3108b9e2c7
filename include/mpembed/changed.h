// Which rows or slots were written: a bit for each, set by the kernels and cleared by their owner.
#ifndef MPEMBED_CHANGED_H
#define MPEMBED_CHANGED_H

#include "mpembed/macros.h"

MPE_BEGIN

// Words of a bitmap of this many bits.
MPE_HD int64_t changed_words(int64_t bits) { return (bits + 31) / 32; }

// Sets a bit, for threads that set others of the word at the same time. bitmap: NULL where nobody
// wants to know. Most rows that are written were written before: a load finds their bit set.
MPE_HD void mark_changed(uint32_t* bitmap, int64_t index) {
  if (bitmap == nullptr) return;
  uint32_t* const word = bitmap + index / 32;
  const uint32_t bit = uint32_t{1} << (index % 32);
#if defined(__CUDA_ARCH__) || defined(MPE_SIMT)
  if ((*static_cast<volatile uint32_t*>(word) & bit) == 0) atomicOr(word, bit);
#else
  if ((__atomic_load_n(word, __ATOMIC_RELAXED) & bit) == 0) {
    __atomic_fetch_or(word, bit, __ATOMIC_RELAXED);
  }
#endif
}

MPE_END

#endif
