// Random bits: known answers of Philox4x32-10, and where a row's draws come from.
#include "mpembed/philox.h"

#include "check.h"

using namespace mpembed;

static bool equal(const Philox4& p, uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
  return p.w[0] == a && p.w[1] == b && p.w[2] == c && p.w[3] == d;
}

// Of the authors' reference, Random123.
CASE(philox_known_answers) {
  CHECK(equal(philox(0, 0, 0, 0, 0), 0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8));
  const uint32_t f = 0xffffffff;
  CHECK(equal(philox(~uint64_t{0}, f, f, f, f), 0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd));
  CHECK(equal(philox(0x299f31d0a4093822u, 0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344),
              0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1));
}

CASE(philox_row_stream) {
  const RowStream row(5, kDomainRow, 3, (uint64_t{1} << 40) + 2, 7);
  const Philox4 block = row.block(1);
  CHECK(equal(philox(5, 1, 2, 256 | 3u << 16, 7), block.w[0], block.w[1], block.w[2], block.w[3]));
  for (int64_t c = 0; c < 8; ++c) {
    CHECK(draw16(block, c) == ((block.w[c / 2] >> (c % 2 * 16)) & 0xFFFF));
    CHECK(draw16(block, c) == draw16(block, c + 8));
  }
}

CASE(philox_every_part_of_the_key_counts) {
  const auto first = [](uint64_t seed, uint32_t domain, uint32_t table, uint64_t row,
                        uint64_t step) {
    return RowStream(seed, domain, table, row, step).block(0).w[0];
  };
  const uint32_t base = first(1, kDomainRow, 2, 3, 4);
  CHECK(base == first(1, kDomainRow, 2, 3, 4));
  CHECK(base != first(2, kDomainRow, 2, 3, 4));
  CHECK(base != first(1 + (uint64_t{1} << 32), kDomainRow, 2, 3, 4));
  CHECK(base != first(1, kDomainState, 2, 3, 4));
  CHECK(base != first(1, kDomainRow, 3, 3, 4));
  CHECK(base != first(1, kDomainRow, 2, 3 + (uint64_t{1} << 32), 4));
  CHECK(base != first(1, kDomainRow, 2, 3, 4 + (uint64_t{1} << 32)));
}
