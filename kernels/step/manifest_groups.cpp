// The groups of a manifest, which are those that such tables are in, and their caches. Python's
// side is mpembed/_collection/grouping.py.
#include <map>
#include <tuple>
#include <utility>

#include "own_optimizer.h"
#include "step/manifest.h"

namespace mpembed::checkpoint {
namespace {

constexpr const char* kGroupFields[] = {"cached", "label", "tables"};
constexpr const char* kCacheFields[] = {"load_factor", "num_sets", "policy", "ways"};

std::string label_of(const Table& table) {
  const std::string dim = std::to_string(table.fields.dim) + ".";
  if (table.optimizer < 0) return dim + "frozen";
  const std::string mode = table.decay == 0 ? "" : std::string(".") + kDecays[table.decay];
  const mpe_own_optimizer* own = own_optimizer(table.optimizer);
  return dim + (own != nullptr ? own->name : kOptimizers[table.optimizer]) + mode;
}

// What groups are sorted by: dimension, optimizer (those of the caller's own by name, frozen tables
// last), weight decay, and whether they have a cache.
using Order = std::tuple<int32_t, int32_t, std::string, int32_t, bool>;

Order order_of(const Table& table, bool cached) {
  constexpr int32_t kOfCaller = static_cast<int32_t>(std::size(kOptimizers)),
                    kFrozen = kOfCaller + 1;
  const mpe_own_optimizer* own = own_optimizer(table.optimizer);
  const int32_t kind = table.optimizer < 0 ? kFrozen : own != nullptr ? kOfCaller : table.optimizer;
  return {table.fields.dim, kind, own != nullptr ? own->name : "", table.decay, cached};
}

// A frozen table has a cache only where it lies in the host's memory beside a device.
std::vector<Group> plan(const std::vector<Table>& tables, bool has_cache) {
  std::map<Order, Group> found;
  for (size_t t = 0; t < tables.size(); ++t) {
    const Table& table = tables[t];
    const bool frozen = table.optimizer < 0, cached = has_cache && (!frozen || table.host);
    Group& group = found[order_of(table, cached)];
    if (group.tables.empty()) {
      group.label = label_of(table);
      group.fields.dim = table.fields.dim;
      group.optimizer = table.optimizer;
      group.cached = cached;
    }
    group.tables.push_back(static_cast<int32_t>(t));
    group.fields.num_tables += 1;
    group.ends.push_back((group.ends.empty() ? 0 : group.ends.back()) + table.fields.num_rows);
  }
  std::vector<Group> groups;
  for (auto& [key, group] : found) groups.push_back(std::move(group));
  return groups;
}

bool is_same(const json::Value& object, const Group& group) {
  const auto equal = [](const json::Value& item, int32_t table) {
    int64_t found = 0;
    return item.get(&found) && found == table;
  };
  check_fields(object, "a group", kGroupFields);
  const std::vector<json::Value>& tables = list(object, "tables");
  return text(member(object, "label"), "label") == group.label &&
         truth(object, "cached") == group.cached &&
         std::equal(tables.begin(), tables.end(), group.tables.begin(), group.tables.end(), equal);
}

// The settings of all caches.
struct Cache {
  int32_t policy;
  int64_t ways, num_sets;  // sets are -1 where they follow from a share of the rows
};

Cache read_settings(const json::Value& object) {
  check_fields(object, "the cache", kCacheFields);
  const int64_t ways = number(member(object, "ways"), "ways", MPE_MIN_WAYS, MPE_MAX_WAYS);
  if ((ways & (ways - 1)) != 0) refuse("ways is not a power of two");
  const int64_t sets = number_or(-1, object, "num_sets", 1, MPE_MAX_SETS);
  const json::Type share = member(object, "load_factor").type;
  if (share != (sets < 0 ? json::Type::kNumber : json::Type::kNull)) {
    refuse("the cache has not just one of load_factor and num_sets");
  }
  return {choice(member(object, "policy"), "policy", kPolicies), ways, sets};
}

// A cache's arrays; where the settings do not say its sets, the arrays do.
void expect_cache(File& file, const Cache& cache, size_t place, Group* group) {
  mpe_checkpoint_group& fields = group->fields;
  const int64_t ways = cache.ways, floats = mpe_slot_floats(group->optimizer, fields.dim);
  const int64_t sets = expect(file, group->name_of("rows"), "F32", {cache.num_sets, ways, floats},
                              Holds::kCacheRows, place)
                           .shape[0];
  if (sets < 1 || sets > MPE_MAX_SETS || sets * ways > MPE_MAX_SLOTS) {
    refuse(group->name_of("rows") + " has no valid number of sets");
  }
  fields.policy = cache.policy;
  fields.num_sets = sets;
  fields.ways = static_cast<int32_t>(ways);
  fields.slot_floats = floats;
  const bool counts = mpe_policy_has_sketch(fields.policy) != 0;
  expect(file, group->name_of("tags"), "U64", {sets, ways}, Holds::kTags, place);
  expect(file, group->name_of("meta"), "U32", {sets, ways}, counts ? Holds::kCounts : Holds::kOther,
         place);
  expect(file, group->name_of("counters"), "U64", {2}, Holds::kCounters, place);
  const int64_t values = mpe_slot_values(group->optimizer);
  if (values > 0) expect(file, group->name_of("values"), "F32", {sets, ways, values});
  if (!counts) return;
  int64_t width = 1;
  while (width < sets * ways) width *= 2;
  expect(file, group->name_of("sketch"), "U8", {MPE_SKETCH_ROWS, width});
}

}  // namespace

std::vector<Group> read_groups(File& file, const json::Value& root,
                               const std::vector<Table>& tables) {
  const bool has_cache = !is_null(root, "cache");
  const Cache cache = has_cache ? read_settings(member(root, "cache")) : Cache{0, 0, 0};
  std::vector<Group> groups = plan(tables, has_cache);
  const std::vector<json::Value>& items = list(root, "groups");
  if (!std::equal(items.begin(), items.end(), groups.begin(), groups.end(), is_same)) {
    refuse("its groups are not those of its tables");
  }
  for (size_t g = 0; g < groups.size(); ++g) {
    if (groups[g].cached) expect_cache(file, cache, g, &groups[g]);
  }
  return groups;
}

}  // namespace mpembed::checkpoint
