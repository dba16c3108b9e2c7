/* The one door to whole kernels: plain C, one function table a backend.
 *
 * Kernels keep no state. Every array is the caller's; pointers are valid for the call only. Sizes
 * are in elements unless a name says bytes. Functions return a status and, on failure, fill the
 * error (if not null) before anything has been changed, except where a comment says otherwise.
 * They may be called from any thread; two calls that touch the same arrays must not overlap.
 * `stream` is the device stream, ignored by the CPU backend.
 * The arithmetic and every order of summation: docs/numerics.md.
 */
#ifndef MPEMBED_API_H
#define MPEMBED_API_H

#include <stddef.h>
#include <stdint.h>

#include "mpembed/registry.h"

#ifdef __cplusplus
extern "C" {
#endif

#define MPE_API_VERSION 1
#define MPE_EXPORT __attribute__((visibility("default")))

/* MPE_FORMAT_INT4, MPE_OPTIMIZER_SGD, ... are not spelled out: the ids are those of registry.h. */
#define MPE_ENUM3(prefix, id, name) MPE_##prefix##_##name = id,
#define MPE_ENUM_FORMAT(id, name, type) MPE_ENUM3(format, id, name)
#define MPE_ENUM_OPTIMIZER(id, name, type) MPE_ENUM3(optimizer, id, name)
#define MPE_ENUM_POLICY(id, name, type) MPE_ENUM3(policy, id, name)
#define MPE_ENUM_POOLING(id, name) MPE_ENUM3(pooling, id, name)
#define MPE_ENUM_DECAY(id, name) MPE_ENUM3(decay, id, name)
#define MPE_ENUM_ROUNDING(id, name) MPE_ENUM3(rounding, id, name)
#define MPE_ENUM_INIT(id, name) MPE_ENUM3(init, id, name)
#define MPE_ENUM_STAT(id, name) MPE_ENUM3(stat, id, name)
enum { MPE_FORMATS(MPE_ENUM_FORMAT) MPE_NUM_FORMATS };
enum { MPE_OPTIMIZERS(MPE_ENUM_OPTIMIZER) MPE_NUM_OPTIMIZERS };
enum { MPE_POLICIES(MPE_ENUM_POLICY) MPE_NUM_POLICIES };
enum { MPE_POOLINGS(MPE_ENUM_POOLING) MPE_NUM_POOLINGS };
enum { MPE_WEIGHT_DECAYS(MPE_ENUM_DECAY) MPE_NUM_WEIGHT_DECAYS };
enum { MPE_ROUNDINGS(MPE_ENUM_ROUNDING) MPE_NUM_ROUNDINGS };
enum { MPE_INITS(MPE_ENUM_INIT) MPE_NUM_INITS };
enum { MPE_STATS(MPE_ENUM_STAT) MPE_NUM_STATS };

typedef enum mpe_status {
  MPE_OK = 0,
  MPE_ERR_INDEX = 1,   /* an index out of range: table, position, value, count are set */
  MPE_ERR_OFFSETS = 2, /* offsets not monotone or not covering the indices: position, value */
  MPE_ERR_VALUE = 3,   /* a value that the format cannot store: position (row), count */
  MPE_ERR_MEMORY = 4   /* out of workspace */
} mpe_status;

typedef struct mpe_error {
  int32_t table;    /* position within the group */
  int64_t position; /* first offending position */
  int64_t value;
  int64_t count; /* how many positions offend */
} mpe_error;

#define MPE_DROPPED UINT64_MAX /* the key of an index that was dropped */

typedef struct mpe_table {
  uint8_t* rows;  /* num_rows x row_bytes */
  void* state;    /* optimizer state or NULL */
  int64_t* stats; /* MPE_NUM_STATS counters, or NULL: nothing is counted */
  int64_t num_rows;
  int64_t base; /* linear row id of row 0 */
  int32_t precision;
  int32_t table_id; /* the random key's table */
  int32_t pooling;
  int32_t feature;      /* this table's place in the batch's offsets */
  int32_t state_format; /* format of element-wise state */
} mpe_table;

typedef struct mpe_cache {
  uint64_t* tags;     /* num_sets x ways */
  uint32_t* meta;     /* num_sets x ways, policy state */
  float* rows;        /* num_sets x ways x dim */
  uint8_t* sketch;    /* 4 x sketch_width, or NULL without a sketch */
  uint64_t* counters; /* clock, samples */
  int64_t num_sets;
  int64_t sketch_width;
  int32_t ways;
  int32_t policy;
} mpe_cache;

/* Tables of one dimension; bases ascend in the order of the tables and start at 0. */
typedef struct mpe_group {
  const mpe_table* tables;
  const mpe_cache* cache; /* or NULL */
  uint64_t seed;
  uint64_t step;
  int32_t num_tables;
  int32_t dim;
  int32_t rounding;
} mpe_group;

/* A caller's batch, table-major: bag b of feature t ends at offsets[t * batch_size + b + 1]. */
typedef struct mpe_batch {
  const void* indices;
  const void* offsets;
  const float* weights; /* one an index, or NULL */
  int64_t num_indices;
  int64_t batch_size;
  int32_t num_features;
  int32_t index_bits; /* 32 or 64 */
  int32_t offset_bits;
} mpe_batch;

/* A group's share of a batch, in the order of its tables: n lookups in num_tables * batch_size
 * bags. */
typedef struct mpe_lookups {
  int64_t n;
  int64_t batch_size;
  uint64_t* keys;       /* n: linear row id, or MPE_DROPPED */
  int32_t* bags;        /* n: table * batch_size + bag */
  int64_t* bag_offsets; /* num_tables * batch_size + 1, starting at 0 */
  float* weights;       /* n, or NULL */
} mpe_lookups;

/* The unique rows of n lookups, ascending; row u's lookups are positions[starts[u] .. starts[u+1]).
 */
typedef struct mpe_unique {
  int64_t count;
  uint64_t* rows;     /* room for n */
  int64_t* starts;    /* room for n + 1 */
  int32_t* positions; /* room for n */
} mpe_unique;

/* One matrix a table: pooled tables have batch_size rows, unpooled ones a row a lookup. */
typedef struct mpe_matrix {
  float* data;
  int64_t stride; /* elements between rows */
} mpe_matrix;

typedef struct mpe_optimizer {
  int32_t kind;
  int32_t decay_mode;
  float lr, eps, weight_decay;
} mpe_optimizer;

typedef struct mpe_backend {
  int32_t api_version;
  const char* name;  /* "cpu", "cuda" */
  const char* level; /* instruction set or architecture */

  /* batch: offsets are monotone, start at 0 and end at num_indices. */
  mpe_status (*check_offsets)(const mpe_batch*, void* stream, mpe_error*);
  /* Fills keys, bags, bag_offsets (and weights if both have them). drop: an index out of range gets
   * MPE_DROPPED and is counted in dropped[table]; otherwise MPE_ERR_INDEX. Offsets must be checked.
   */
  mpe_status (*prepare)(const mpe_group*, const mpe_batch*, int32_t drop, mpe_lookups*,
                        int64_t* dropped, void* stream, mpe_error*);
  /* Unique keys below `limit`; dropped lookups have no position. */
  mpe_status (*dedup)(const uint64_t* keys, int64_t n, uint64_t limit, mpe_unique*, void* stream);

  /* Admission: slots[u] (int32, -1 = not cached), pins every cached row once. */
  mpe_status (*cache_admit)(const mpe_group*, const mpe_unique*, int32_t* slots, void* stream);
  /* slots[u] of rows that had none are looked up again, without a pin. */
  mpe_status (*cache_refresh)(const mpe_group*, const mpe_unique*, const int32_t* slots,
                              int32_t* fresh, void* stream);
  void (*cache_release)(const mpe_cache*, const int32_t* slots, int64_t n, void* stream);
  mpe_status (*cache_flush)(const mpe_group*, void* stream);
  /* slots[i] of keys[i] (-1 = not cached). */
  void (*cache_locate)(const mpe_cache*, const uint64_t* keys, int64_t n, int32_t* slots,
                       void* stream);
  /* slots[i] of lookup i out of the slots of the unique rows. */
  void (*scatter_slots)(const mpe_unique*, const int32_t* unique_slots, int64_t n, int32_t* slots,
                        void* stream);

  /* slots: one a lookup, or NULL without a cache. out: one matrix a table. */
  mpe_status (*lookup)(const mpe_group*, const mpe_lookups*, const int32_t* slots,
                       const mpe_matrix* out, void* stream);
  /* Gradient of the per-sample weights, one a lookup. */
  mpe_status (*weight_grad)(const mpe_group*, const mpe_lookups*, const int32_t* slots,
                            const mpe_matrix* grad, float* out, void* stream);
  /* slots: one a unique row (fresh), or NULL. nonfinite: rows left as they were; first_nonfinite:
   * the smallest linear row id of them. */
  mpe_status (*update)(const mpe_group*, const mpe_optimizer*, const mpe_lookups*,
                       const mpe_unique*, const int32_t* slots, const mpe_matrix* grad,
                       int64_t* nonfinite, uint64_t* first_nonfinite, void* stream);

  /* Values of whole rows, keys checked by the caller and (for write) without duplicates. */
  mpe_status (*write_rows)(const mpe_group*, const uint64_t* keys, int64_t n, const float* values,
                           void* stream);
  mpe_status (*init_rows)(const mpe_group*, int32_t table, int32_t kind, float a, float b,
                          void* stream);

  /* MPE_ERR_VALUE if some row cannot be stored. */
  mpe_status (*check_values)(const float* x, int64_t n, int64_t dim, int32_t precision,
                             void* stream, mpe_error*);
  /* rows: n x row_bytes; x: n x dim; both dense. */
  mpe_status (*quantize)(const float* x, int64_t n, int64_t dim, int32_t precision,
                         int32_t rounding, uint64_t seed, uint64_t step, uint8_t* rows,
                         void* stream);
  mpe_status (*dequantize)(const uint8_t* rows, int64_t n, int64_t dim, int32_t precision, float* x,
                           void* stream);
  /* bits: 4 or 2. n rows of dim codes, one a byte, to and from rows of ceil(dim * bits / 8) bytes.
   */
  mpe_status (*pack_codes)(const uint8_t* codes, int64_t n, int64_t dim, int32_t bits,
                           uint8_t* packed, void* stream);
  mpe_status (*unpack_codes)(const uint8_t* packed, int64_t n, int64_t dim, int32_t bits,
                             uint8_t* codes, void* stream);
  /* precision: fp16 or bf16. */
  mpe_status (*stochastic_round)(const float* x, int64_t n, int32_t precision, uint64_t seed,
                                 uint64_t step, uint16_t* out, void* stream);
} mpe_backend;

/* The CPU backend at the best instruction set of this machine, capped by MPEMBED_ISA. */
MPE_EXPORT const mpe_backend* mpe_cpu_backend(void);
/* Bytes of a row, -1 for an unknown precision. code_bytes: the same without the header. */
MPE_EXPORT int64_t mpe_row_bytes(int32_t precision, int64_t dim);
MPE_EXPORT int64_t mpe_code_bytes(int32_t precision, int64_t dim);
/* What an optimizer keeps: 0 nothing, 1 a value a row, 2 a value an element. */
MPE_EXPORT int32_t mpe_state_shape(int32_t optimizer);
/* Whether a policy keeps a sketch. */
MPE_EXPORT int32_t mpe_policy_has_sketch(int32_t policy);
/* CPU threads: the count (>= 1), and a setter that clamps to 1 .. 1024. */
MPE_EXPORT int32_t mpe_get_num_threads(void);
MPE_EXPORT void mpe_set_num_threads(int32_t n);

#ifdef __cplusplus
}
#endif

#endif
