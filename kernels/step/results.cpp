#include "step/results.h"

#include "outputs.h"

namespace mpembed::step {

Results::Results(const mpe_collection& collection, const mpe_results& results)
    : collection_(collection),
      tables_(results.tables),
      format_(results.format),
      outputs_(static_cast<size_t>(collection.num_groups)),
      matrices_(outputs_.size()) {
  size_t most = 0;
  for (size_t g = 0; g < outputs_.size(); ++g) {
    const mpe_group& group = collection.groups[g];
    mpe_outputs& outputs = outputs_[g];
    outputs.shared = results.shared;
    outputs.format = format_;
    if (tables_ != nullptr && group.num_tables == 1) {
      // Where it lies says all, and no graph has to keep a copy.
      outputs.shared = tables_[group.tables[0].feature];
      outputs.shared.data = static_cast<uint8_t*>(outputs.shared.data) -
                            group.tables[0].column * output_bytes(outputs.format);
    }
    if (needs_matrices(group) && most < static_cast<size_t>(group.num_tables)) {
      most = static_cast<size_t>(group.num_tables);
    }
  }
  host_.resize(most);
}

void Results::take(Arrays& arrays) {
  for (size_t g = 0; g < outputs_.size(); ++g) {
    const mpe_group& group = collection_.groups[g];
    if (needs_matrices(group)) matrices_[g] = arrays.take<mpe_matrix>(group.num_tables);
  }
}

mpe_status Results::fill(void* stream) {
  if (!is_output_format(format_)) return MPE_ERR_VALUE;
  if (host_.empty()) return MPE_OK;
  const mpe_backend& backend = *collection_.backend;
  uint64_t capture = 0;
  MPE_TRY(backend.capturing(stream, &capture));
  if (capture != 0) return MPE_ERR_VALUE;
  for (size_t g = 0; g < outputs_.size(); ++g) {
    const mpe_group& group = collection_.groups[g];
    if (!needs_matrices(group)) continue;
    for (int32_t t = 0; t < group.num_tables; ++t) {
      host_[static_cast<size_t>(t)] = tables_[group.tables[t].feature];
    }
    const int64_t bytes = group.num_tables * static_cast<int64_t>(sizeof(mpe_matrix));
    MPE_TRY(backend.copy(matrices_[g], host_.data(), bytes, stream));
    outputs_[g].tables = matrices_[g];
  }
  return MPE_OK;
}

}  // namespace mpembed::step
