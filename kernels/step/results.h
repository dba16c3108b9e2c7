// A caller's outputs or gradients as each group's kernels see them.
#pragma once

#include <vector>

#include "step/open_batch.h"

namespace mpembed::step {

// One set of results for all groups. Groups of several tables with a matrix each need them where
// the kernels run: `take` lays those out, `fill` copies them.
class Results {
 public:
  Results(const mpe_collection& collection, const mpe_results& results);

  void take(Arrays& arrays);
  // MPE_ERR_VALUE if there is no such format, and in a capture, whose launches would read the
  // host's memory again.
  mpe_status fill(void* stream);
  const mpe_outputs* of(size_t group) const { return &outputs_[group]; }

 private:
  bool needs_matrices(const mpe_group& group) const {
    return tables_ != nullptr && group.num_tables > 1;
  }

  const mpe_collection& collection_;
  const mpe_matrix* tables_;
  const int32_t format_;
  std::vector<mpe_outputs> outputs_;
  std::vector<mpe_matrix*> matrices_;  // where the kernels run
  std::vector<mpe_matrix> host_;
};

}  // namespace mpembed::step
