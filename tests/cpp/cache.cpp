// Tags, sets and probes of the cache, the sketch's cells, and the two policies.
#include "mpembed/cache.h"

#include <vector>

#include "check.h"
#include "mpembed/policy/lfu.h"
#include "mpembed/policy/lru.h"

using namespace mpembed;

CASE(hash_known_answers) {  // of SplitMix64's author, for the seed 0
  CHECK(splitmix64(0) == 0xE220A8397B1DCDAFu);
  CHECK(splitmix64(0x9E3779B97F4A7C15u) == 0x6E789E6AA1B965F4u);
}

CASE(hash_sets_are_in_range_and_even) {
  for (int64_t sets : {1, 3, 1000}) {
    std::vector<int> load(static_cast<size_t>(sets));
    for (uint64_t id = 0; id < 40000; ++id) {
      const int64_t set = set_of(id, sets);
      CHECK(set >= 0 && set < sets);
      ++load[static_cast<size_t>(set)];
    }
    for (int n : load) CHECK(n > 40000 / sets / 3 && n < 3 * 40000 / sets + 1);
  }
}

CASE(hash_sketch_cells_are_in_range) {
  for (uint32_t j = 0; j < kSketchRows; ++j) {
    CHECK(sketch_cell(splitmix64(5), j, 64) < 64);
    CHECK(sketch_cell(splitmix64(5), j, 1) == 0);
  }
}

CASE(cache_probe_ignores_pins_and_the_dirty_bit) {
  const int32_t ways = 8;
  const int64_t sets = 5;
  std::vector<uint64_t> tags(static_cast<size_t>(sets * ways), kTagEmpty);
  CHECK(probe(tags.data(), sets, ways, 42) == -1);
  const int64_t slot = set_of(42, sets) * ways + 6;
  tags[static_cast<size_t>(slot)] = 42 | kTagDirty | (3 * kTagPin);
  CHECK(probe(tags.data(), sets, ways, 42) == slot);
  CHECK(probe(tags.data(), sets, ways, 43) == -1);
  CHECK((kTagPinMask & kTagIdMask) == 0 && (kTagPinMask & kTagDirty) == 0);
  CHECK(MPE_MAX_PINS * kTagPin == kTagPinMask);
}

CASE(policy_lru_prefers_the_oldest) {
  const uint32_t now = 5;  // the clock has wrapped around
  CHECK(Lru::rank(0xFFFFFFF0u, now) < Lru::rank(3, now));
  CHECK(Lru::rank(3, now) < Lru::rank(5, now));
  CHECK(Lru::on_hit(1, now) == now && Lru::admits(0, 100));
}

CASE(policy_lfu_counts_up_to_its_maximum) {
  CHECK(Lfu::on_hit(7, 0) == 8 && Lfu::on_hit(kSketchMax, 0) == kSketchMax);
  CHECK(Lfu::admits(3, 2) && !Lfu::admits(2, 2));
  CHECK(Lfu::rank(2, 9) < Lfu::rank(3, 9));
}
