// The lane tree: the one order in which a sum over columns is taken (docs/numerics.md, section 5).
#ifndef MPEMBED_REDUCE_H
#define MPEMBED_REDUCE_H

#include "mpembed/contract.h"
#include "mpembed/macros.h"

MPE_BEGIN

constexpr int kTreeLanes = MPE_TREE_LANES;

// Folds the 32 lane sums of one row; a warp does the same with shuffles.
MPE_HD float fold_lanes(float* lane) {
  for (int s = kTreeLanes / 2; s > 0; s >>= 1) {
    for (int l = 0; l < s; ++l) lane[l] += lane[l + s];
  }
  return lane[0];
}

// Dot product of two rows in lane-tree order.
MPE_HD float tree_dot(const float* a, const float* b, int64_t dim) {
  float lane[kTreeLanes] = {};
  int64_t c = 0;
  for (; c + kTreeLanes <= dim; c += kTreeLanes) {
    for (int l = 0; l < kTreeLanes; ++l) lane[l] = fmaf(a[c + l], b[c + l], lane[l]);
  }
  for (int l = 0; c + l < dim; ++l) lane[l] = fmaf(a[c + l], b[c + l], lane[l]);
  return fold_lanes(lane);
}

MPE_END

#endif
