// One step of each optimizer against double precision, weight decay, and the order of a row's sum.
#include <cmath>
#include <vector>

#include "check.h"
#include "mpembed/registry_types.h"

using namespace mpembed;

static bool near(float x, double y) { return std::fabs(x - y) <= 1e-6 * (1.0 + std::fabs(y)); }

CASE(optim_sgd) {
  float w[2] = {1.0f, -2.0f};
  const float g[2] = {0.5f, 4.0f};
  Sgd::step({0.1f, 0.0f, 0.0f, kDecayNone}, w, g, nullptr, 2);
  CHECK(near(w[0], 0.95) && near(w[1], -2.4));
}

CASE(optim_adagrad) {
  float w[2] = {1.0f, 1.0f}, h[2] = {0.0f, 3.0f};
  const float g[2] = {2.0f, 1.0f};
  Adagrad::step({0.1f, 1e-8f, 0.0f, kDecayNone}, w, g, h, 2);
  CHECK(near(h[0], 4.0) && near(h[1], 4.0));
  CHECK(near(w[0], 0.9) && near(w[1], 0.95));
}

CASE(optim_rowwise_adagrad) {
  std::vector<float> w(50, 1.0f), g(50, 2.0f);
  float h = 5.0f;
  RowwiseAdagrad::step({0.3f, 1e-8f, 0.0f, kDecayNone}, w.data(), g.data(), &h, 50);
  CHECK(near(h, 9.0));
  for (float x : w) CHECK(near(x, 0.8));
}

CASE(optim_decay) {
  float w[1] = {2.0f}, g[1] = {1.0f};
  apply_decay({0.1f, 0.0f, 0.5f, kDecayL2}, w, g, 1);
  CHECK(near(w[0], 2.0) && near(g[0], 2.0));
  apply_decay({0.1f, 0.0f, 0.5f, kDecayDecoupled}, w, g, 1);
  CHECK(near(w[0], 1.9) && near(g[0], 2.0));
}

// 32 lanes that are folded, and no other order: with these values the order shows.
CASE(reduce_order) {
  std::vector<float> a(40, 0.0f), one(40, 1.0f);
  a[0] = 16777216.0f;  // 2^24: adding 1 to it is lost
  a[32] = 1.0f;        // the same lane
  a[1] = 1.0f;         // lanes 1 and 17 meet before lane 0 does
  a[17] = 1.0f;
  CHECK(tree_dot(a.data(), one.data(), 40) == 16777218.0f);
  CHECK(tree_dot(a.data(), one.data(), 0) == 0.0f);
}

// The target's flags: what is not written as one operation is not made one, though this machine
// may be able to (docs/numerics.md).
static float times_minus(float a, float b, float c) { return a * b - c; }

CASE(flags_no_contraction) {
  volatile float above = 1.0f + 1.0f / 8192.0f, below = 1.0f - 1.0f / 8192.0f;
  CHECK(times_minus(above, below, 1.0f) == 0.0f);  // 1 - 2^-26 is rounded to 1 first
  CHECK(std::fmaf(above, below, -1.0f) == -1.0f / 67108864.0f);
}
