/* The one door to whole kernels: plain C, one function table a backend.
 *
 * Kernels keep no state. Every array is the caller's and lies where the backend's kernels run; the
 * structs themselves, and what a comment calls the host's, lie in host memory. Sizes are in
 * elements unless a name says bytes. They may be called from any thread; two calls that touch the
 * same arrays must not overlap.
 *
 * The CPU backend returns when the work is done: arrays must live for the call, the status says
 * what is wrong with the input, and nothing has been changed then, except where a comment says
 * otherwise. `stream` is ignored.
 *
 * A device backend returns at once: arrays must live until the work on `stream` is done, the status
 * speaks of the launch only, and what is wrong with the input is written to the error, in device
 * memory, for the caller to read later; a batch with such an error changes nothing (see discard).
 *
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

#define MPE_API_VERSION 3
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
  MPE_ERR_INDEX = 1,     /* an index out of range: table, position, value, count are set */
  MPE_ERR_OFFSETS = 2,   /* offsets not monotone or not covering the indices: position, value */
  MPE_ERR_VALUE = 3,     /* a value that the format cannot store: position (row), count */
  MPE_ERR_MEMORY = 4,    /* out of memory */
  MPE_ERR_NONFINITE = 5, /* updates left out: value (smallest linear row id), count */
  MPE_ERR_DEVICE = 6     /* the device's runtime refused: last_error says why */
} mpe_status;

/* What a kernel found: it writes MPE_NO_ERROR if nothing is wrong. */
typedef struct mpe_error {
  int32_t status;   /* MPE_OK, or what is wrong */
  int32_t table;    /* its table_id */
  int64_t position; /* first offending position */
  int64_t value;
  int64_t count; /* how many positions offend */
} mpe_error;
#define MPE_NO_ERROR {MPE_OK, 0, INT64_MAX, INT64_MAX, 0}

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
  int64_t column;       /* where its columns begin in a shared output */
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
  const mpe_table* tables;        /* the host's */
  const mpe_table* device_tables; /* a copy where the kernels run; NULL for the CPU */
  const mpe_cache* cache;         /* the host's, or NULL */
  const uint64_t* step;           /* the write step, one value where the kernels run */
  uint64_t seed;
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

/* A group's share of a batch, in the order of its tables, in num_tables * batch_size bags. There
 * are bag_offsets[num_tables * batch_size] lookups; n is the room for them, on the CPU the same
 * number. n and num_tables * batch_size are at most INT32_MAX.
 */
typedef struct mpe_lookups {
  int64_t n;
  int64_t batch_size;
  uint64_t* keys;       /* n: linear row id, or MPE_DROPPED (also beyond the last lookup) */
  int32_t* bags;        /* n: table * batch_size + bag */
  int64_t* bag_offsets; /* num_tables * batch_size + 1, starting at 0 */
  int64_t* origins;     /* num_tables: the batch's position of the table's first lookup */
  int64_t* dropped;     /* num_tables: lookups out of range */
  float* weights;       /* n, or NULL */
} mpe_lookups;

/* The unique rows of n lookups, ascending; row u's lookups are positions[starts[u] .. starts[u+1]).
 */
typedef struct mpe_unique {
  int64_t* count;     /* one value */
  uint64_t* rows;     /* room for n */
  int64_t* starts;    /* room for n + 1 */
  int32_t* positions; /* room for n */
} mpe_unique;

typedef struct mpe_matrix {
  float* data;
  int64_t stride; /* elements between rows */
} mpe_matrix;

/* Outputs or their gradients: pooled tables have batch_size rows, unpooled ones a row a lookup. */
typedef struct mpe_outputs {
  mpe_matrix shared;        /* each table at its column; used where `tables` is NULL */
  const mpe_matrix* tables; /* one matrix a table, where the kernels run */
} mpe_outputs;

/* A group's part in a forward. */
typedef struct mpe_part {
  const mpe_group* group;
  const mpe_lookups* lookups;
  const int32_t* slots; /* one a lookup, or NULL without a cache */
  const mpe_outputs* outputs;
} mpe_part;

typedef struct mpe_optimizer {
  int32_t kind;
  int32_t decay_mode;
  float lr, eps, weight_decay;
  const float* device_lr; /* what holds instead of lr when a device's update runs, or NULL; the
                             CPU's is NULL */
} mpe_optimizer;

typedef enum mpe_placement {
  MPE_PLACEMENT_DEVICE = 0,
  MPE_PLACEMENT_HOST =
      1 /* pinned host memory that the device's kernels reach at the same address */
} mpe_placement;

typedef struct mpe_device {
  char name[256];
  int64_t memory;       /* bytes; 0 if not known */
  int32_t major, minor; /* compute capability; 0 where there is none */
} mpe_device;

typedef struct mpe_backend {
  int32_t api_version;
  const char* name;  /* "cpu", "cuda" */
  const char* level; /* instruction set or architectures */

  /* memory: what kernels of this backend can reach. */
  mpe_status (*device_count)(int32_t* count);
  mpe_status (*describe)(int32_t device, mpe_device* out);
  /* The device of this thread's calls; the same from now on. */
  mpe_status (*current_device)(int32_t* device);
  mpe_status (*use_device)(int32_t device);
  mpe_status (*allocate)(int64_t bytes, int32_t placement, void** out);
  void (*release)(void* p, int32_t placement);
  /* The same in the order of a stream, for what lives between two calls. */
  mpe_status (*borrow)(int64_t bytes, void* stream, void** out);
  void (*give_back)(void* p, void* stream);
  /* Between the host's memory and the kernels', in any direction; the host's may be used again at
   * return when it is the source, and after synchronize when it is the target. */
  mpe_status (*copy)(void* to, const void* from, int64_t bytes, void* stream);
  mpe_status (*fill)(void* p, int32_t byte, int64_t bytes, void* stream);
  mpe_status (*synchronize)(void* stream);
  /* What `stream` is given after `wait` starts when the work that was given to the event's stream
   * before `record` is done; at once where nothing was recorded. */
  mpe_status (*create_event)(void** out);
  void (*destroy_event)(void* event);
  mpe_status (*record)(void* event, void* stream);
  mpe_status (*wait)(void* event, void* stream);
  /* Graphs: the number of the capture that `stream` is part of, 0 if it is in none, UINT64_MAX if
   * an error has spoiled it. While it is in one, only functions that return nothing from the device
   * may be called on it, with memory and events that live as long as the graph, or are borrowed and
   * given back within the capture. The two others are for such a stream: each launch of its graph
   * waits for what an event recorded last, or lets the event record; all else that event is used
   * for lies outside of graphs. */
  mpe_status (*capturing)(void* stream, uint64_t* capture);
  mpe_status (*wait_in_graph)(void* event, void* stream);
  mpe_status (*record_in_graph)(void* event, void* stream);
  /* What the device's runtime said last in this thread; never NULL. */
  const char* (*last_error)(void);

  /* batch: offsets are monotone, start at 0 and end at num_indices. */
  mpe_status (*check_offsets)(const mpe_batch*, void* stream, mpe_error*);
  /* Fills all of the lookups but n and batch_size (weights where the batch has them). drop: an
   * index out of range gets MPE_DROPPED and is counted in `dropped`; otherwise it is MPE_ERR_INDEX.
   * offsets: the error of check_offsets; a device that finds one there sees a batch of empty bags.
   */
  mpe_status (*prepare)(const mpe_group*, const mpe_batch*, int32_t drop, const mpe_error* offsets,
                        mpe_lookups*, void* stream, mpe_error*);
  /* If one of the n errors of a batch is set, every key becomes MPE_DROPPED, every bag empty and
   * `dropped` zero; what is wrong goes to `sink` unless that holds an error already: the offsets'
   * error, else that of the smallest position with the count of all. */
  mpe_status (*discard)(const mpe_group*, mpe_lookups*, const mpe_error* errors, int32_t n,
                        mpe_error* sink, void* stream);
  /* Unique keys below `limit`; dropped lookups have no position. */
  mpe_status (*dedup)(const uint64_t* keys, int64_t n, uint64_t limit, mpe_unique*, void* stream);
  /* Adds to the tables' statistics: accesses and dropped lookups where asked for, and unique rows
   * where `unique` is not NULL. */
  mpe_status (*count)(const mpe_group*, const mpe_lookups*, const mpe_unique* unique,
                      int32_t accesses, int32_t dropped, void* stream);
  /* step += 1. */
  mpe_status (*advance)(uint64_t* step, void* stream);

  /* Admission: slots[u] (int32, -1 = not cached), pins every cached row once. */
  mpe_status (*cache_admit)(const mpe_group*, const mpe_unique*, int64_t n, int32_t* slots,
                            void* stream);
  /* slots[u] of rows that had none are looked up again, without a pin. */
  mpe_status (*cache_refresh)(const mpe_group*, const mpe_unique*, int64_t n, const int32_t* slots,
                              int32_t* fresh, void* stream);
  mpe_status (*cache_release)(const mpe_cache*, const mpe_unique*, int64_t n, const int32_t* slots,
                              void* stream);
  mpe_status (*cache_flush)(const mpe_group*, void* stream);
  /* slots[i] of keys[i] (-1 = not cached). */
  mpe_status (*cache_locate)(const mpe_cache*, const uint64_t* keys, int64_t n, int32_t* slots,
                             void* stream);
  /* slots[i] of lookup i out of the slots of the unique rows. */
  mpe_status (*scatter_slots)(const mpe_unique*, const int32_t* unique_slots, int64_t n,
                              int32_t* slots, void* stream);

  /* The forward of n groups at once, each its share of the same batch or of another one. */
  mpe_status (*lookup)(const mpe_part*, int32_t n, void* stream);
  /* Gradient of the per-sample weights, one an index of the batch. slots: one a lookup, or NULL. */
  mpe_status (*weight_grad)(const mpe_group*, const mpe_lookups*, const int32_t* slots,
                            const mpe_outputs* grad, float* out, void* stream);
  /* slots: one a unique row (fresh), or NULL. A row whose update would not be finite stays as it
   * was and is added to `nonfinite` (which starts as MPE_NO_ERROR): status, smallest value, count.
   */
  mpe_status (*update)(const mpe_group*, const mpe_optimizer*, const mpe_lookups*,
                       const mpe_unique*, const int32_t* slots, const mpe_outputs* grad,
                       mpe_error* nonfinite, void* stream);

  /* Values of whole rows as they are now, keys checked by the caller. */
  mpe_status (*read_rows)(const mpe_group*, const uint64_t* keys, int64_t n, float* values,
                          void* stream);
  /* The same the other way, keys without duplicates. */
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
  /* MPE_ERR_VALUE if some of n codes takes more bits: its position and value, and how many. */
  mpe_status (*check_codes)(const uint8_t* codes, int64_t n, int32_t bits, void* stream,
                            mpe_error*);
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
/* The CUDA backend, in a library of its own; it needs no driver before its functions are called. */
MPE_EXPORT const mpe_backend* mpe_cuda_backend(void);
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
