// The one list of formats, optimizers, policies, poolings, statistics and sums. The numbers are
// part of the C ABI: append, never reorder. Python's names, the tests and the documentation come
// from here.
#ifndef MPEMBED_REGISTRY_H
#define MPEMBED_REGISTRY_H

// X(id, name, type)
#define MPE_FORMATS(X)      \
  X(0, fp32, Fp32)          \
  X(1, fp16, Fp16)          \
  X(2, bf16, Bf16)          \
  X(3, int8, Int8)          \
  X(4, int8_fp16, Int8Fp16) \
  X(5, int4, Int4)          \
  X(6, int2, Int2)          \
  X(7, int6, Int6)          \
  X(8, int5, Int5)

#define MPE_OPTIMIZERS(X)               \
  X(0, sgd, Sgd)                        \
  X(1, adagrad, Adagrad)                \
  X(2, rowwise_adagrad, RowwiseAdagrad) \
  X(3, sgd_momentum, SgdMomentum)       \
  X(4, adam, Adam)                      \
  X(5, rowwise_adam, RowwiseAdam)       \
  X(6, lamb, Lamb)                      \
  X(7, ftrl, Ftrl)

#define MPE_POLICIES(X) \
  X(0, lru, Lru)        \
  X(1, lfu, Lfu)

// The formats that an optimizer's state may have, with their numbers above. Kernels test for them
// in this order and need no test for the last one, so the default comes last.
#define MPE_STATE_FORMATS(X) \
  X(2, bf16, Bf16)           \
  X(0, fp32, Fp32)

// The types that outputs and their gradients may have, with their numbers above. A zero is FP32.
#define MPE_OUTPUT_FORMATS(X) \
  X(0, fp32, Fp32)            \
  X(1, fp16, Fp16)            \
  X(2, bf16, Bf16)

// X(id, name)
#define MPE_POOLINGS(X) \
  X(0, sum)             \
  X(1, mean)            \
  X(2, none)

#define MPE_WEIGHT_DECAYS(X) \
  X(0, none)                 \
  X(1, l2)                   \
  X(2, decoupled)

#define MPE_ROUNDINGS(X) \
  X(0, nearest)          \
  X(1, stochastic)       \
  X(2, paired)

#define MPE_INITS(X) \
  X(0, zeros)        \
  X(1, uniform)      \
  X(2, normal)

// Per-table statistics, in this order.
#define MPE_STATS(X)    \
  X(0, accesses)        \
  X(1, unique)          \
  X(2, hits)            \
  X(3, misses)          \
  X(4, conflict_misses) \
  X(5, rejected)        \
  X(6, evictions)       \
  X(7, write_backs)     \
  X(8, dropped)         \
  X(9, nonfinite)

// Per-table sums over a sample of the writes of rows: what a report on rounding is made of.
#define MPE_NOISE_SUMS(X) \
  X(0, rows)              \
  X(1, rounding)          \
  X(2, update)

#endif
