// Refuses what a Collection cannot be made of, with the names of what is wrong.
#ifndef MPEMBED_COLLECTION_CHECKS_H
#define MPEMBED_COLLECTION_CHECKS_H

#include <cmath>
#include <iterator>
#include <set>
#include <stdexcept>
#include <string>
#include <vector>

#include "mpembed/collection/config.h"

namespace mpembed::detail {

inline void require(bool right, const std::string& otherwise) {
  if (!right) throw std::invalid_argument(otherwise);
}

inline void require_number(const std::string& what, int64_t value, int64_t low, int64_t high) {
  require(value >= low && value <= high, what + " must be in " + std::to_string(low) + " .. " +
                                             std::to_string(high) + ", got " +
                                             std::to_string(value));
}

inline void check_table(const TableConfig& table) {
  const std::string of = " of table '" + table.name + "'";
  require(!table.name.empty(), "a table needs a name");
  require_number("num_rows" + of, table.num_rows, 0, MPE_MAX_ROWS);
  require_number("dim" + of, table.dim, 1, MPE_MAX_DIM);
  require_number("precision" + of, table.precision, 0, MPE_NUM_FORMATS - 1);
  require_number("pooling" + of, table.pooling, 0, MPE_NUM_POOLINGS - 1);
  require_number("table_id" + of, table.table_id, -1, MPE_MAX_TABLES - 1);
  require_number("first_row" + of, table.first_row, 0, MPE_MAX_ROWS - table.num_rows);
  require(table.total_rows == -1 || table.total_rows >= table.first_row + table.num_rows,
          "total_rows" + of + " is smaller than first_row + num_rows");
  if (table.init.has_value()) require_number("init" + of, table.init->kind, 0, MPE_NUM_INITS - 1);
  require(table.trainable || !table.optimizer.has_value(),
          "the optimizer" + of + " is not used: the table is frozen");
}

// Two tables may not hold the same rows of a table.
inline void check_shards(const std::vector<TableConfig>& tables) {
  std::map<int32_t, std::map<int64_t, int64_t>> spans;  // by table: where rows begin and end
  for (size_t t = 0; t < tables.size(); ++t) {
    const TableConfig& table = tables[t];
    if (table.num_rows == 0) continue;
    const int32_t id = table.table_id < 0 ? static_cast<int32_t>(t) : table.table_id;
    auto& own = spans[id];
    const auto [here, added] = own.emplace(table.first_row, table.first_row + table.num_rows);
    const bool before = here != own.begin() && std::prev(here)->second > table.first_row;
    const bool after = std::next(here) != own.end() && std::next(here)->first < here->second;
    require(added && !before && !after, "table '" + table.name +
                                            "' shares rows with another of "
                                            "the same table_id, " +
                                            std::to_string(id));
  }
}

inline void check_tables(const std::vector<TableConfig>& tables) {
  require(!tables.empty(), "a collection needs a table");
  require_number("the number of tables", static_cast<int64_t>(tables.size()), 1, MPE_MAX_TABLES);
  std::set<std::string> names;
  for (const TableConfig& table : tables) {
    check_table(table);
    require(names.insert(table.name).second, "two tables are called '" + table.name + "'");
  }
  check_shards(tables);
}

// The number of sets of a group's cache.
inline int64_t sets_for(const CacheConfig& cache, int64_t rows) {
  require((cache.load_factor > 0.0) != (cache.num_sets > 0),
          "a cache takes exactly one of load_factor and num_sets");
  require(cache.ways >= MPE_MIN_WAYS && cache.ways <= MPE_MAX_WAYS &&
              (cache.ways & (cache.ways - 1)) == 0,
          "ways must be 8, 16 or 32");
  require_number("policy", cache.policy, 0, MPE_NUM_POLICIES - 1);
  const double wanted = std::ceil(cache.load_factor * static_cast<double>(rows) / cache.ways);
  require(wanted <= static_cast<double>(MPE_MAX_SETS), "load_factor is too large");
  const int64_t sets =
      cache.num_sets > 0 ? cache.num_sets : (wanted < 1.0 ? 1 : static_cast<int64_t>(wanted));
  require_number("num_sets", sets, 1, MPE_MAX_SETS);
  require(sets * cache.ways <= MPE_MAX_SLOTS, "the cache has too many slots");
  return sets;
}

}  // namespace mpembed::detail

#endif
