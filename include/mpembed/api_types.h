/* What api.h passes around: numbers of the registry, status codes, and structs of pointers and
 * sizes; contract.h has their limits. Plain C.
 *
 * Every array belongs to the caller, is dense and in C order, and lies where the backend's kernels
 * run, except where a comment says "host". Its type's natural alignment is enough; the bytes of
 * table rows need none. Sizes are in elements unless a name says bytes. Below, E is a table's
 * number of rows, D its dimension, T the number of tables of a group, B the number of bags a table,
 * N the number of indices of a batch. */
#ifndef MPEMBED_API_TYPES_H
#define MPEMBED_API_TYPES_H

#include "mpembed/contract.h"
#include "mpembed/integers.h"
#include "mpembed/registry.h"

#ifdef __cplusplus
extern "C" {
#endif

/* MPE_format_int4, MPE_optimizer_sgd, ... are not spelled out: the ids are those of registry.h. */
#define MPE_ENUM3(prefix, id, name) MPE_##prefix##_##name = id,
#define MPE_ENUM_FORMAT(id, name, type) MPE_ENUM3(format, id, name)
#define MPE_ENUM_OPTIMIZER(id, name, type) MPE_ENUM3(optimizer, id, name)
#define MPE_ENUM_POLICY(id, name, type) MPE_ENUM3(policy, id, name)
#define MPE_ENUM_POOLING(id, name) MPE_ENUM3(pooling, id, name)
#define MPE_ENUM_DECAY(id, name) MPE_ENUM3(decay, id, name)
#define MPE_ENUM_ROUNDING(id, name) MPE_ENUM3(rounding, id, name)
#define MPE_ENUM_INIT(id, name) MPE_ENUM3(init, id, name)
#define MPE_ENUM_STAT(id, name) MPE_ENUM3(stat, id, name)
#define MPE_ENUM_NOISE(id, name) MPE_ENUM3(noise, id, name)
enum { MPE_FORMATS(MPE_ENUM_FORMAT) MPE_NUM_FORMATS };
enum { MPE_OPTIMIZERS(MPE_ENUM_OPTIMIZER) MPE_NUM_OPTIMIZERS };
enum { MPE_POLICIES(MPE_ENUM_POLICY) MPE_NUM_POLICIES };
enum { MPE_POOLINGS(MPE_ENUM_POOLING) MPE_NUM_POOLINGS };
enum { MPE_WEIGHT_DECAYS(MPE_ENUM_DECAY) MPE_NUM_WEIGHT_DECAYS };
enum { MPE_ROUNDINGS(MPE_ENUM_ROUNDING) MPE_NUM_ROUNDINGS };
enum { MPE_INITS(MPE_ENUM_INIT) MPE_NUM_INITS };
enum { MPE_STATS(MPE_ENUM_STAT) MPE_NUM_STATS };
enum { MPE_NOISE_SUMS(MPE_ENUM_NOISE) MPE_NUM_NOISE_SUMS };

typedef enum mpe_status {
  MPE_OK = 0,
  MPE_ERR_INDEX = 1,     /* an index out of range: table, position, value, count are set */
  MPE_ERR_OFFSETS = 2,   /* offsets not monotone or not covering the indices: position, value */
  MPE_ERR_VALUE = 3,     /* a value that the format cannot store: position (row), count */
  MPE_ERR_MEMORY = 4,    /* out of memory */
  MPE_ERR_NONFINITE = 5, /* updates left out: value (smallest linear row id), count */
  MPE_ERR_DEVICE = 6     /* the device's runtime refused: last_error says why */
} mpe_status;

/* What a kernel found: it writes MPE_NO_ERROR if nothing is wrong. */
typedef struct mpe_error {
  int32_t status;   /* an mpe_status: MPE_OK, or what is wrong */
  int32_t table;    /* its feature: shards of a table share its table_id */
  int64_t position; /* first offending position */
  int64_t value;
  int64_t count; /* how many positions offend */
} mpe_error;
#define MPE_NO_ERROR {MPE_OK, 0, INT64_MAX, INT64_MAX, 0}

/* One of an optimizer's states of a table: a value or D values a row, as the optimizer declares it
 * (mpe_state_shape). Rows may lie apart, so that a row and its states can lie side by side. */
typedef struct mpe_state {
  uint8_t* data;  /* row 0's */
  int64_t stride; /* bytes from a row's to the next row's */
  int32_t format; /* one of MPE_STATE_FORMATS */
} mpe_state;

/* Memory of rows, one after the other. */
typedef struct mpe_span {
  const uint8_t* data; /* row 0 */
  int64_t bytes;       /* of a row */
} mpe_span;

/* Where the kernels of the CPU copy rows before they write them (preimages.h). */
typedef struct mpe_preimage_log {
  uint8_t* data;    /* zero at the start */
  int64_t capacity; /* bytes */
  int64_t used;     /* beyond the capacity: a row was not kept */
} mpe_preimage_log;

/* Rows whose values of this moment are kept while they are written. */
typedef struct mpe_preimages {
  mpe_span spans[1 + MPE_MAX_STATES]; /* what is kept of a row */
  int32_t num_spans;
  int32_t owner;       /* a number of the caller's, for the log's entries */
  int64_t entry_bytes; /* of a row in the log */
  uint32_t* kept;      /* a bit a row, zero at the start: it is in the log, or was read */
  mpe_preimage_log* log;
} mpe_preimages;

/* One table, or a shard of one. Rows are packed as docs/numerics.md says. */
typedef struct mpe_table {
  uint8_t* rows;                    /* row 0 */
  int64_t row_stride;               /* bytes from a row to the next, at least mpe_row_bytes */
  mpe_state states[MPE_MAX_STATES]; /* in the optimizer's order; others are not read */
  int64_t* stats;                   /* MPE_NUM_STATS counters, or NULL: nothing is counted */
  int64_t* noise;                   /* MPE_NUM_NOISE_SUMS sums, or NULL: nothing is measured */
  uint32_t* changed;                /* a bit a row, or NULL: each write of the row's memory or of
                                       its states' sets it (changed.h); kernels clear none */
  mpe_preimages* preimages;         /* or NULL; the CPU's kernels keep a row there before they
                                       write it, a device's do not */
  int64_t num_rows;                 /* E, 0 .. MPE_MAX_ROWS */
  int64_t base;      /* linear row id of row 0: the rows of the group's tables before it */
  int64_t first_row; /* number of row 0 in the whole table: random bits follow that */
  int32_t precision; /* MPE_format_... of the rows */
  int32_t table_id;  /* the random key's table, 0 .. MPE_MAX_TABLES - 1 */
  int32_t pooling;   /* MPE_pooling_... */
  int32_t feature;   /* this table's place in the batch's offsets */
  int32_t placement; /* MPE_PLACEMENT_... of the rows */
  int64_t column;    /* where its columns begin in a shared output */
} mpe_table;

/* A cache of num_sets x ways slots. It starts with every tag MPE_EMPTY_TAG and all else zero. */
typedef struct mpe_cache {
  uint64_t* tags;     /* num_sets x ways: linear row id, pins and the dirty bit (cache.h) */
  uint32_t* meta;     /* num_sets x ways, policy state */
  float* rows;        /* num_sets x ways x mpe_slot_floats: the row, then each of the
                         optimizer's states of a value an element, D values each */
  float* values;      /* num_sets x ways x mpe_slot_values: the row's states of one value; NULL
                         where the optimizer has none */
  uint8_t* sketch;    /* MPE_SKETCH_ROWS x sketch_width, or NULL (mpe_policy_has_sketch) */
  uint64_t* counters; /* 2: clock, samples */
  uint32_t* changed;  /* a bit a slot, or NULL: each write of rows or values sets it */
  mpe_preimages* preimages; /* the same for slots */
  int64_t num_sets;         /* 1 .. MPE_MAX_SETS, and at most MPE_MAX_SLOTS slots */
  int64_t sketch_width;     /* the power of two that is at least the number of slots */
  int32_t ways;             /* 8, 16 or 32; 32 on a CUDA device */
  int32_t policy;           /* MPE_policy_... */
} mpe_cache;

/* What may change from one update of a table to the next. Where the kernels run. */
typedef struct mpe_parameters {
  int32_t optimizer;  /* MPE_optimizer_..., of mpe_register_optimizer, or -1: the table is frozen */
  int32_t decay_mode; /* MPE_decay_... */
  double values[MPE_MAX_PARAMETERS]; /* lr, weight_decay, then mpe_parameter_name's */
} mpe_parameters;

/* An optimizer that registry.h does not have, see mpe_register_optimizer. The functions are the
 * CPU's, compiled at the level of its backend (kernels/cpu/own_step.h); NULL: it trains on devices
 * alone. */
typedef struct mpe_own_optimizer {
  const char* name;
  int32_t num_states; /* of them, one at most is of a value a row */
  const char* state_names[MPE_MAX_STATES];
  int32_t state_shapes[MPE_MAX_STATES]; /* MPE_STATE_ROW or MPE_STATE_ELEMENT */
  float state_initials[MPE_MAX_STATES];
  int32_t num_parameters; /* besides lr and weight_decay */
  const char* parameters[MPE_MAX_PARAMETERS];
  void (*coefficients)(const double* values, int32_t decay_mode, uint64_t updates,
                       float* coefficients);
  void (*step)(const void* settings, void* rows);
} mpe_own_optimizer;

/* How the tables of a group are trained. */
typedef struct mpe_optimizer {
  int32_t kind;              /* MPE_optimizer_..., or of mpe_register_optimizer */
  int32_t decay_mode;        /* MPE_decay_... */
  const float* coefficients; /* T x MPE_MAX_COEFFICIENTS, of begin_update, where the kernels run */
  /* Of one of the caller's own, see mpe_register_optimizer; else not read. What begin_update had of
   * the group's tables: a device computes their coefficients at the update. */
  const mpe_parameters* parameters;
  const uint64_t* updates;
} mpe_optimizer;

/* Tables of one dimension and optimizer, which share a cache; bases ascend in the order of the
 * tables, from 0. */
typedef struct mpe_group {
  const mpe_table* tables;        /* T, the host's */
  const mpe_table* device_tables; /* a copy where the kernels run; NULL for the CPU */
  const mpe_cache* cache;         /* the host's, or NULL: every row is trained in its table */
  const mpe_optimizer* optimizer; /* the host's, or NULL: the tables are frozen, without states */
  const uint64_t* step;           /* the write step, one value where the kernels run */
  uint64_t seed;                  /* of rounding and initial rows */
  int32_t num_tables;             /* T */
  int32_t dim;                    /* D, 1 .. MPE_MAX_DIM */
  int32_t rounding;               /* MPE_rounding_... of what is written to tables and states */
} mpe_group;

/* A caller's batch, table-major: bag b of feature t ends at offsets[t * batch_size + b + 1]. It is
 * read only. */
typedef struct mpe_batch {
  const void* indices;  /* N row numbers, each within its own table */
  const void* offsets;  /* num_features * B + 1; the first is 0, the last is N */
  const float* weights; /* one an index, or NULL */
  int64_t num_indices;  /* N */
  int64_t batch_size;   /* B */
  int32_t num_features;
  int32_t index_bits;  /* 32 or 64, signed */
  int32_t offset_bits; /* 32 or 64, signed */
} mpe_batch;

/* A group's share of a batch, in the order of its tables, in T * B bags. There are
 * bag_offsets[T * B] lookups; n is the room for them, on the CPU the same number. n and T * B are
 * at most MPE_MAX_LOOKUPS. */
typedef struct mpe_lookups {
  int64_t n;
  int64_t batch_size;
  uint64_t* keys;       /* n: linear row id, or MPE_DROPPED (also beyond the last lookup) */
  int32_t* bags;        /* n: table * B + bag */
  int64_t* bag_offsets; /* T * B + 1, starting at 0 */
  int64_t* origins;     /* T: the batch's position of the table's first lookup */
  int64_t* dropped;     /* T: how many keys are MPE_DROPPED; where 0, kernels look for none */
  float* weights;       /* n, or NULL */
} mpe_lookups;

/* The unique rows of n lookups, ascending; row u's lookups are positions[starts[u] ..
 * starts[u + 1]). A device's positions go on with those of the dropped lookups. */
typedef struct mpe_unique {
  int64_t* count;     /* one value */
  uint64_t* rows;     /* room for n */
  int64_t* starts;    /* room for n + 1 */
  int32_t* positions; /* room for n */
} mpe_unique;

/* A group's share of a batch. */
typedef struct mpe_share {
  const mpe_group* group;
  const mpe_lookups* lookups;
  const mpe_unique* unique; /* where its unique rows are to be found, or NULL */
} mpe_share;

/* What an admission found. The table of a row that it admitted has the values and states of its
 * slot until a later write step writes rows: so each update takes a step. Leave it out (NULL) where
 * a table lies in the host's memory, whose rows would cross the bus again. */
typedef struct mpe_found {
  int32_t* slots; /* before it, one a unique row: -1 for rows that were not cached */
  uint64_t* step; /* the write step after it, one value */
} mpe_found;

typedef struct mpe_matrix {
  void* data;
  int64_t stride; /* elements between rows */
} mpe_matrix;

/* Outputs or their gradients: pooled tables have B rows, unpooled ones a row a lookup. */
typedef struct mpe_outputs {
  mpe_matrix shared;        /* each table at its column; used where `tables` is NULL */
  const mpe_matrix* tables; /* T, one matrix a table, where the kernels run */
  int32_t format;           /* of all elements: one of MPE_OUTPUT_FORMATS */
} mpe_outputs;

/* What a forward needs of one group. */
typedef struct mpe_lookup_args {
  const mpe_group* group;
  const mpe_lookups* lookups;
  const int32_t* slots; /* one a lookup (-1: not cached), or NULL without a cache */
  const mpe_outputs* outputs;
} mpe_lookup_args;

/* A batch's share of an update. */
typedef struct mpe_gradient {
  const mpe_lookups* lookups;
  const mpe_outputs* grad; /* of the outputs */
} mpe_gradient;

typedef enum mpe_placement {
  MPE_PLACEMENT_DEVICE = 0,
  MPE_PLACEMENT_HOST =
      1 /* pinned host memory that the device's kernels reach at the same address */
} mpe_placement;

typedef struct mpe_device {
  char name[256];       /* ends with a zero */
  int64_t memory;       /* bytes; 0 if not known */
  int32_t major, minor; /* compute capability; 0 where there is none */
} mpe_device;

#ifdef __cplusplus
}
#endif

#endif
