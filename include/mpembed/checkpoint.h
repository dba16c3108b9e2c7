/* Reads what Python's `emb.save` wrote, to serve it. docs/cpp.md describes the file. Plain C.
 *
 * A file, however damaged, gives an error and nothing else, or what can be served. Only its header
 * is read when it is opened; mpe_checkpoint_read reads an array, compares its checksum and checks
 * what it holds. The file may be replaced meanwhile: the one that was opened stays. */
#ifndef MPEMBED_CHECKPOINT_H
#define MPEMBED_CHECKPOINT_H

#include "mpembed/api.h"

#ifdef __cplusplus
extern "C" {
#endif

/* An open file. Its functions may not be called from two threads at once. */
typedef struct mpe_checkpoint mpe_checkpoint;

typedef struct mpe_checkpoint_info {
  int32_t num_tables;
  int32_t num_groups;
  int32_t rounding; /* MPE_rounding_... */
  int32_t drop;     /* 1: indices out of range are dropped */
  uint64_t seed;
  uint64_t step;
} mpe_checkpoint_info;

/* Texts and lists belong to the checkpoint. */
typedef struct mpe_checkpoint_table {
  const char* name;
  int64_t num_rows;
  int64_t first_row;
  int32_t dim;
  int32_t precision; /* MPE_format_... */
  int32_t pooling;   /* MPE_pooling_... */
  int32_t table_id;
} mpe_checkpoint_table;

/* Tables that share a cache. */
typedef struct mpe_checkpoint_group {
  const char* label;     /* of its arrays: cache.LABEL.tags and so on */
  const int32_t* tables; /* their places among all tables */
  int32_t num_tables;
  int32_t dim;
  int32_t policy;      /* MPE_policy_... */
  int32_t ways;        /* of its cache; 0 if it has none */
  int64_t num_sets;    /* the same */
  int64_t slot_floats; /* of its cache: the row, then states */
} mpe_checkpoint_group;

/* Opens a file. NULL if there is no memory; otherwise to be closed, also after an error. */
MPE_EXPORT mpe_checkpoint* mpe_checkpoint_open(const char* path);
MPE_EXPORT void mpe_checkpoint_close(mpe_checkpoint*);
/* What failed last, with the file's name; NULL if nothing did. After a failure to open, there is
 * nothing else to ask for. */
MPE_EXPORT const char* mpe_checkpoint_error(const mpe_checkpoint*);

MPE_EXPORT void mpe_checkpoint_describe(const mpe_checkpoint*, mpe_checkpoint_info* out);
MPE_EXPORT void mpe_checkpoint_get_table(const mpe_checkpoint*, int32_t table,
                                         mpe_checkpoint_table* out);
MPE_EXPORT void mpe_checkpoint_get_group(const mpe_checkpoint*, int32_t group,
                                         mpe_checkpoint_group* out);
/* Bytes of an array, -1 if there is none of this name. */
MPE_EXPORT int64_t mpe_checkpoint_bytes(const mpe_checkpoint*, const char* name);
/* Reads an array into the host's memory, which holds so many bytes. MPE_ERR_VALUE: it does not
 * exist, has another size, cannot be read, is damaged, or holds what kernels may not trust: tags of
 * rows that do not exist, come twice or lie in a wrong set; rows that are not finite or exceed the
 * range of their table's format; counts out of range. Values of states (cache.LABEL.values, and
 * table.NAME. with another name than rows) and of noise are not checked. Rows of a cache are
 * checked by its tags, which stay in memory from their first reading on. MPE_ERR_MEMORY: there is
 * no memory for the checks. */
MPE_EXPORT mpe_status mpe_checkpoint_read(mpe_checkpoint*, const char* name, void* to,
                                          int64_t bytes);

#ifdef __cplusplus
}
#endif

#endif
