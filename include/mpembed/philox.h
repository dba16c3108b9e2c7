// Philox4x32-10 (Salmon et al., SC'11) and mpembed's counter layout (docs/numerics.md, section 1).
#ifndef MPEMBED_PHILOX_H
#define MPEMBED_PHILOX_H

#include "mpembed/contract.h"
#include "mpembed/macros.h"

MPE_BEGIN

enum RngDomain : uint32_t {
  kDomainRow = 0,
  kDomainState = 1,  // an optimizer's first state
  kDomainInit = 2,
  kDomainRound = 3,
  kDomainSecondState = 4,
  kDomainPair = 5,  // a row's pair of writes
};

// The domain of an optimizer's state number i.
MPE_HD RngDomain state_domain(int i) { return i == 0 ? kDomainState : kDomainSecondState; }

struct Philox4 {
  uint32_t w[4];
};

// The halves of a product. On a device, nvcc would take two moves more out of one of 64 bits.
MPE_HD void multiply_wide(uint32_t a, uint32_t b, uint32_t* high, uint32_t* low) {
#if defined(__CUDA_ARCH__)
  *high = __umulhi(a, b);
  *low = a * b;
#else
  const uint64_t product = static_cast<uint64_t>(a) * b;
  *high = static_cast<uint32_t>(product >> 32);
  *low = static_cast<uint32_t>(product);
#endif
}

MPE_HD void philox_round(uint32_t c[4], uint32_t k0, uint32_t k1) {
  uint32_t h0, l0, h1, l1;
  multiply_wide(0xD2511F53u, c[0], &h0, &l0);
  multiply_wide(0xCD9E8D57u, c[2], &h1, &l1);
  const uint32_t n0 = h1 ^ c[1] ^ k0;
  const uint32_t n2 = h0 ^ c[3] ^ k1;
  c[0] = n0;
  c[1] = l1;
  c[2] = n2;
  c[3] = l0;
}

MPE_HD Philox4 philox(uint64_t seed, uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3) {
  uint32_t c[4] = {c0, c1, c2, c3};
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
  for (int i = 0; i < 10; ++i) {
    philox_round(c, k0, k1);
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return Philox4{{c[0], c[1], c[2], c[3]}};
}

// The stream of one row: everything of the key and counter but the column block.
struct RowStream {
  uint64_t seed;
  uint32_t c0, c1, c2, c3;

  MPE_HD RowStream(uint64_t seed_, uint32_t domain, uint32_t table, uint64_t row, uint64_t step)
      : seed(seed_),
        c0((domain << 20) | (static_cast<uint32_t>(step >> 32) << 24)),
        c1(static_cast<uint32_t>(row)),
        c2((static_cast<uint32_t>(row >> 32) & 0xFFFFu) | (table << 16)),
        c3(static_cast<uint32_t>(step)) {}

  // That of the row's pair of writes, known by the header that the first of them stores (affine.h),
  // in place of the step. Headers may recur; the piece of the steps bounds how long draws repeat.
  MPE_HD RowStream pair(uint32_t nonce) const {
    const uint64_t step = (static_cast<uint64_t>(c0 >> 24) << 32) | c3;
    RowStream pair = *this;
    pair.c0 = (kDomainPair << 20) | (static_cast<uint32_t>(step / MPE_PAIR_STEPS) << 24);
    pair.c3 = nonce;
    return pair;
  }

  MPE_HD Philox4 block(uint32_t column_block) const {
    return philox(seed, c0 | column_block, c1, c2, c3);
  }
};

// The 16-bit draw of column c out of its block's four words.
MPE_HD uint32_t draw16(const Philox4& block, int64_t c) {
  return (block.w[(c & 7) >> 1] >> ((c & 1) * 16)) & 0xFFFFu;
}

MPE_END

#endif
