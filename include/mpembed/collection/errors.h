// What kernels found wrong, as exceptions.
#ifndef MPEMBED_COLLECTION_ERRORS_H
#define MPEMBED_COLLECTION_ERRORS_H

#include <stdexcept>
#include <string>
#include <vector>

#include "mpembed/collection/config.h"
#include "mpembed/step.h"

namespace mpembed::detail {

// Throws what is wrong with a batch, if anything is.
inline void throw_batch_error(const mpe_error& error, const std::vector<TableConfig>& tables) {
  const std::string position = " at position " + std::to_string(error.position);
  const std::string value = std::to_string(error.value);
  if (error.status == MPE_ERR_OFFSETS) {
    throw std::invalid_argument(
        "offsets must start at 0, not decrease and end at the number of indices; there is " +
        value + position);
  }
  if (error.status != MPE_ERR_INDEX) return;
  const TableConfig& table = tables[static_cast<size_t>(error.table)];
  throw std::out_of_range("index " + value + position + " is out of range for table '" +
                          table.name + "' with " + std::to_string(table.num_rows) + " rows; " +
                          std::to_string(error.count) + " such in all");
}

// Throws if updates were left out; errors are one a group.
inline void throw_update_errors(const mpe_collection& fields, const mpe_error* errors,
                                const std::vector<TableConfig>& tables) {
  int64_t rows = 0;
  std::string first;
  for (int32_t g = 0; g < fields.num_groups; ++g) {
    rows += errors[g].count;
    for (int32_t t = 0; first.empty() && errors[g].count > 0 && t < fields.groups[g].num_tables;
         ++t) {
      const mpe_table& table = fields.groups[g].tables[t];
      const int64_t row = errors[g].value - table.base;  // the value is a linear row id
      if (row < 0 || row >= table.num_rows) continue;
      first = "row " + std::to_string(row) + " of table '" +
              tables[static_cast<size_t>(table.feature)].name + "'";
    }
  }
  if (rows == 0) return;
  throw std::runtime_error("the update of " + std::to_string(rows) +
                           " row(s) would not be finite, first " + first +
                           "; they keep their values, all others are updated");
}

}  // namespace mpembed::detail

#endif
