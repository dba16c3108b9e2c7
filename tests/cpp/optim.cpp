// Every optimizer's steps against the same formulas in double precision, each decay with each, and
// the order of a row's sum.
#include <cmath>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "check.h"
#include "mpembed/optim/step.h"
#include "mpembed/registry_types.h"

using namespace mpembed;

namespace {

// A row in double precision. Of the states one value a row is the first element.
struct Row {
  std::vector<double> w, g, states[MPE_MAX_STATES];
};

// The settings of an optimizer, by name, and the number of the update.
struct Settings {
  int32_t decay;
  double t, lr, weight_decay, eps, lr_decay, momentum, beta1, beta2, lr_power, l1, l2, beta;
};
constexpr Settings kSettings{kDecayNone, 1,    0.05, 0.03, 1e-6, 0.2, 0.8,
                             0.9,        0.99, -0.7, 0.02, 0.1,  0.5};

// Its parameters, in the order in which the optimizer has them.
template <class Optimizer>
std::vector<double> parameters(const Settings& s) {
  std::vector<double> all{s.lr, s.weight_decay};
  const std::pair<const char*, double> named[] = {{"eps", s.eps},
                                                  {"lr_decay", s.lr_decay},
                                                  {"momentum", s.momentum},
                                                  {"beta1", s.beta1},
                                                  {"beta2", s.beta2},
                                                  {"lr_power", s.lr_power},
                                                  {"l1", s.l1},
                                                  {"l2", s.l2},
                                                  {"beta", s.beta}};
  for (const char* const* name = Optimizer::kParameters; *name != nullptr; ++name) {
    const size_t before = all.size();
    for (const auto& [known, value] : named) {
      if (std::strcmp(known, *name) == 0) all.push_back(value);
    }
    CHECK(all.size() == before + 1);
  }
  CHECK(all.size() <= MPE_MAX_PARAMETERS);
  return all;
}

void decay(const Settings& s, Row& row) {
  for (size_t i = 0; i < row.w.size(); ++i) {
    if (s.decay == kDecayL2) row.g[i] += s.weight_decay * row.w[i];
    if (s.decay == kDecayDecoupled) row.w[i] -= s.lr * s.weight_decay * row.w[i];
  }
}

double mean_square(const std::vector<double>& x) {
  double sum = 0.0;
  for (const double value : x) sum += value * value;
  return sum / static_cast<double>(x.size());
}

// The formulas, as papers and PyTorch have them.
void step(Sgd, const Settings& s, Row& row) {
  for (size_t i = 0; i < row.w.size(); ++i) row.w[i] -= s.lr * row.g[i];
}

void step(SgdMomentum, const Settings& s, Row& row) {
  for (size_t i = 0; i < row.w.size(); ++i) {
    double& b = row.states[0][i];
    b = s.momentum * b + row.g[i];
    row.w[i] -= s.lr * b;
  }
}

void step(Adagrad, const Settings& s, Row& row) {
  for (size_t i = 0; i < row.w.size(); ++i) {
    double& h = row.states[0][i];
    h += row.g[i] * row.g[i];
    row.w[i] -= s.lr / (1 + (s.t - 1) * s.lr_decay) * row.g[i] / (std::sqrt(h) + s.eps);
  }
}

void step(RowwiseAdagrad, const Settings& s, Row& row) {
  double& h = row.states[0][0];
  h += mean_square(row.g);
  for (size_t i = 0; i < row.w.size(); ++i) row.w[i] -= s.lr / (std::sqrt(h) + s.eps) * row.g[i];
}

double average(double kept, double before, double x) { return kept * before + (1 - kept) * x; }

void step(Adam, const Settings& s, Row& row) {
  const double rate = s.lr * std::sqrt(1 - std::pow(s.beta2, s.t)) / (1 - std::pow(s.beta1, s.t));
  for (size_t i = 0; i < row.w.size(); ++i) {
    double &m = row.states[0][i], &v = row.states[1][i];
    m = average(s.beta1, m, row.g[i]);
    v = average(s.beta2, v, row.g[i] * row.g[i]);
    row.w[i] -= rate * m / (std::sqrt(v) + s.eps);
  }
}

void step(RowwiseAdam, const Settings& s, Row& row) {
  const double rate = s.lr * std::sqrt(1 - std::pow(s.beta2, s.t)) / (1 - std::pow(s.beta1, s.t));
  double& v = row.states[1][0];
  v = average(s.beta2, v, mean_square(row.g));
  for (size_t i = 0; i < row.w.size(); ++i) {
    double& m = row.states[0][i];
    m = average(s.beta1, m, row.g[i]);
    row.w[i] -= rate * m / (std::sqrt(v) + s.eps);
  }
}

void step(Lamb, const Settings& s, Row& row) {
  std::vector<double> direction;
  for (size_t i = 0; i < row.w.size(); ++i) {
    double &m = row.states[0][i], &v = row.states[1][i];
    m = average(s.beta1, m, row.g[i]);
    v = average(s.beta2, v, row.g[i] * row.g[i]);
    const double first = m / (1 - std::pow(s.beta1, s.t));
    const double second = v / (1 - std::pow(s.beta2, s.t));
    const double pull = s.decay == kDecayDecoupled ? s.weight_decay * row.w[i] : 0.0;
    direction.push_back(first / (std::sqrt(second) + s.eps) + pull);
  }
  const double w = std::sqrt(mean_square(row.w)), r = std::sqrt(mean_square(direction));
  const double trust = w > 0 && r > 0 ? w / r : 1.0;
  for (size_t i = 0; i < row.w.size(); ++i) row.w[i] -= s.lr * trust * direction[i];
}

void step(Ftrl, const Settings& s, Row& row) {
  for (size_t i = 0; i < row.w.size(); ++i) {
    double &z = row.states[0][i], &n = row.states[1][i];
    const double before = std::pow(n, -s.lr_power);
    if (z == 0.0) {  // the row starts from its weights
      const double w = row.w[i], l1 = w > 0 ? s.l1 : w < 0 ? -s.l1 : 0.0;
      z = -(w * ((s.beta + before) / s.lr + s.l2) + l1);
    }
    n += row.g[i] * row.g[i];
    const double after = std::pow(n, -s.lr_power);
    z += row.g[i] - (after - before) / s.lr * row.w[i];
    const double sign = z < 0 ? -1.0 : 1.0;
    row.w[i] = std::fabs(z) <= s.l1 ? 0.0 : (sign * s.l1 - z) / ((s.beta + after) / s.lr + s.l2);
  }
}

template <class Optimizer>
void shrink(Optimizer, const Settings& s, Row& row) {
  decay(s, row);
}
void shrink(Lamb, const Settings& s, Row& row) {  // decoupled decay is part of the direction
  if (s.decay == kDecayL2) decay(s, row);
}
void shrink(Ftrl, const Settings& s, Row& row) {
  decay(s, row);
  if (s.decay != kDecayDecoupled) return;
  for (double& z : row.states[0]) z -= s.lr * s.weight_decay * z;
}

bool near(float x, double y) { return std::fabs(x - y) <= 2e-6 * (0.1 + std::fabs(y)); }

bool near(const std::vector<float>& x, const std::vector<double>& y) {
  for (size_t i = 0; i < x.size(); ++i) {
    if (!near(x[i], y[i])) return false;
  }
  return x.size() == y.size();
}

// Some updates of a row, by the header and in double precision.
template <class Optimizer>
void compare(const std::string& name, int32_t mode, size_t dim) {
  Settings s = kSettings;
  s.decay = mode;
  const std::vector<double> p = parameters<Optimizer>(s);
  Row row;
  std::vector<float> w, states[MPE_MAX_STATES];
  float* pointers[MPE_MAX_STATES] = {};
  if constexpr (Optimizer::kNumStates > 0) {
    for (int i = 0; i < Optimizer::kNumStates; ++i) {
      const State& state = Optimizer::kStates[i];
      states[i].assign(state.shape == kStateRow ? 1 : dim, state.initial);
      row.states[i].assign(states[i].begin(), states[i].end());
      pointers[i] = states[i].data();
    }
  }
  for (size_t i = 0; i < dim; ++i) w.push_back(std::sin(static_cast<float>(3 * i + 1)));
  row.w.assign(w.begin(), w.end());
  for (uint64_t t = 1; t <= 4; ++t) {
    std::vector<float> g;
    for (size_t i = 0; i < dim; ++i) g.push_back(std::cos(static_cast<float>((i + 2) * t)));
    row.g.assign(g.begin(), g.end());
    s.t = static_cast<double>(t);
    shrink(Optimizer{}, s, row);
    step(Optimizer{}, s, row);
    float c[MPE_MAX_COEFFICIENTS] = {};
    Optimizer::coefficients(p.data(), mode, t, c);
    optimizer_step<Optimizer>(mode, c, w.data(), g.data(), pointers, static_cast<int64_t>(dim));
    const std::string where = " of " + name + ", decay " + std::to_string(mode) + ", dimension " +
                              std::to_string(dim) + ", update " + std::to_string(t);
    check::that(near(w, row.w), ("the weight" + where).c_str(), __FILE__, __LINE__);
    for (int i = 0; i < Optimizer::kNumStates; ++i) {
      const std::string what = "state " + std::to_string(i) + where;
      check::that(near(states[i], row.states[i]), what.c_str(), __FILE__, __LINE__);
    }
  }
}

template <class Optimizer>
void compare_all(const char* name) {
  for (const int32_t mode : {kDecayNone, kDecayL2, kDecayDecoupled}) {
    for (const size_t dim : {1, 7, 50}) compare<Optimizer>(name, mode, dim);
  }
}

// One step of FTRL on one element without decay.
float ftrl(float w, float g, float* z, float* n, double l1) {
  const double p[] = {0.1, 0.0, -0.5, l1, 0.0, 1.0};
  float c[MPE_MAX_COEFFICIENTS] = {};
  float* const states[] = {z, n};
  Ftrl::coefficients(p, kDecayNone, 1, c);
  optimizer_step<Ftrl>(kDecayNone, c, &w, &g, states, 1);
  return w;
}

// One step of LAMB on two elements, at a rate of 0.5.
void lamb(float* w, float g) {
  const double p[] = {0.5, 0.0, 0.9, 0.99, 1e-12};
  float c[MPE_MAX_COEFFICIENTS] = {}, gradient[2] = {g, g}, m[2] = {}, v[2] = {};
  float* const states[] = {m, v};
  Lamb::coefficients(p, kDecayNone, 1, c);
  optimizer_step<Lamb>(kDecayNone, c, w, gradient, states, 2);
}

}  // namespace

CASE(optim_every_optimizer_follows_its_formula) {
#define MPE_COMPARE(number, name, type) compare_all<type>(#name);
  MPE_OPTIMIZERS(MPE_COMPARE)
#undef MPE_COMPARE
}

CASE(optim_states_are_told_by_their_shape) {
  CHECK(kElementStates<Sgd> == 0 && kRowStates<Sgd> == 0);
  CHECK(kElementStates<Adagrad> == 1 && kRowStates<Adagrad> == 0);
  CHECK(kElementStates<RowwiseAdam> == 1 && kRowStates<RowwiseAdam> == 1);
  CHECK(kElementStates<Lamb> == 2 && nth_state<Lamb>(kStateElement, 1) == 1);
  CHECK(nth_state<RowwiseAdam>(kStateElement, 0) == 0);
  CHECK(nth_state<RowwiseAdam>(kStateRow, 0) == 1);
}

CASE(optim_decay_goes_into_the_gradient_or_the_weight) {
  const double p[] = {0.1, 0.5};
  float c[MPE_MAX_COEFFICIENTS] = {}, w = 2.0f, g = 1.0f;
  Sgd::coefficients(p, kDecayL2, 1, c);
  decay<Sgd>(kDecayL2, c, w, g, static_cast<float*>(nullptr));
  CHECK(near(w, 2.0) && near(g, 2.0));
  Sgd::coefficients(p, kDecayDecoupled, 1, c);
  decay<Sgd>(kDecayDecoupled, c, w, g, static_cast<float*>(nullptr));
  CHECK(near(w, 1.9) && near(g, 2.0));
}

CASE(optim_ftrl_zeros_are_exact) {
  float z = 0.0f, n = 0.0f;
  CHECK(float_bits(ftrl(0.0f, 0.25f, &z, &n, 0.5)) == 0 && z == 0.25f && n == 0.0625f);
  CHECK(float_bits(ftrl(0.0f, 0.25f, &z, &n, 0.5)) == 0 && z == 0.5f);  // |z| is l1: still zero
  const float w = ftrl(0.0f, 0.25f, &z, &n, 0.5);
  CHECK(w < 0.0f && near(w, -0.25 / ((1.0 + std::sqrt(3 * 0.0625)) / 0.1)));
  z = n = 0.0f;
  CHECK(float_bits(ftrl(0.0f, -0.25f, &z, &n, 0.5)) == 0 && z == -0.25f);  // +0, not -0
  z = n = 0.0f;
  CHECK(float_bits(ftrl(0.0f, 0.0f, &z, &n, 0.0)) == 0);
  // A weight that FTRL has not made yet stays where it is until a gradient moves it.
  for (const float given : {0.75f, -0.75f}) {
    z = n = 0.0f;
    CHECK(near(ftrl(given, 0.0f, &z, &n, 0.5), given));
    CHECK(near(z, given < 0.0f ? 8.0 : -8.0) && n == 0.0f);
  }
}

CASE(optim_lamb_moves_by_the_rate_where_a_norm_is_zero) {
  float zeros[2] = {0.0f, 0.0f}, rest[2] = {3.0f, -4.0f}, moved[2] = {3.0f, -4.0f};
  lamb(zeros, 2.0f);  // the direction is 1 an element
  CHECK(near(zeros[0], -0.5) && near(zeros[1], -0.5));
  lamb(rest, 0.0f);
  CHECK(rest[0] == 3.0f && rest[1] == -4.0f);
  lamb(moved, 2.0f);
  CHECK(near(moved[0], 3.0 - 0.5 * 5.0 / std::sqrt(2.0)));
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
