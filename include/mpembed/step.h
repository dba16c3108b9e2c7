/* The training step of a collection, above the functions of a backend (api.h): check a batch, find
 * its rows, admit them to the caches, look up, update, release. Plain C, for every backend.
 *
 * A step in training:
 *
 *   mpe_open(&collection, &batch, stream, &open, &error);
 *   mpe_forward(open, NULL, &outputs, stream);            // mpe_admit before it: a prefetch
 *   mpe_backward(&collection, &gradient, 1, stream);
 *   mpe_free(open);
 *
 * and in evaluation: mpe_open, mpe_evaluate, mpe_close, mpe_free.
 *
 * Ownership. The collection's arrays and structs are the caller's and outlive its open batches. An
 * open batch owns its workspace, which it borrows from the backend. A batch's own arrays are read
 * by mpe_open alone: on a device in the order of its stream. It copies the offsets and reads each
 * index once, so what another thread writes there meanwhile may give a wrong answer, and no more.
 *
 * What fails changes nothing. Each function checks and allocates for all groups before it takes the
 * write step or changes anything. Two failures are later: a kernel that finds no memory for its own
 * workspace (MPE_ERR_MEMORY), before it changes anything itself, and a device that refuses a launch
 * (MPE_ERR_DEVICE). Then
 * - mpe_admit, mpe_forward: the batch is closed. If no group has admitted rows, the CPU's step is
 *   taken back; otherwise the rows that earlier groups have admitted stay cached, unpinned.
 * - mpe_backward: if no group was updated, the batches stay open, and on the CPU the write step and
 *   the count of updates are taken back. Otherwise the groups before are updated, and the batches
 *   are closed, so that no second try updates those twice.
 * - mpe_flush: if no group was flushed, the CPU's step is taken back; otherwise the groups before
 *   are flushed.
 * - mpe_write_rows: the CPU's step is taken back.
 * A device's step is never taken back: other work may be queued behind it, which counts on it.
 *
 * What is wrong with a batch is said by mpe_open on the CPU. On a device the first call that uses
 * the batch writes it to the collection's errors; such a batch is open like any other, has no
 * lookups, and changes nothing but the step and the caches' clocks.
 *
 * Threads. Calls of one collection, those on its open batches included, must not overlap.
 *
 * Streams. Every call queues its work on its stream and gives workspace back in that order; only
 * mpe_batch_error, mpe_count_lookups and mpe_take_errors wait for a device. Calls on several
 * streams are ordered by the caller.
 *
 * Graphs. All other calls can be captured in a CUDA graph, with outputs in one matrix or one table
 * a group. What a capture opens it must close, or else drop by mpe_forget: each launch of that
 * graph would pin rows that nothing unpins. What was opened before is not closed in a capture.
 *
 * Limits for the caller to keep: MPE_MAX_PINS admitted batches at once, MPE_MAX_STEP steps.
 */
#ifndef MPEMBED_STEP_H
#define MPEMBED_STEP_H

#include "mpembed/api.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Tables that are trained together. The caller fills it; zero what is not used. */
typedef struct mpe_collection {
  const mpe_backend* backend;
  const mpe_group* groups; /* G, the host's; `step` of each is that below */
  uint64_t* step;          /* the write step, starts at 0 */
  uint64_t* updates;       /* the count of updates, starts at 0 */
  /* Of all tables, in the order of the groups and of their tables: the parameters, and n x
   * MPE_MAX_COEFFICIENTS, into which each group's optimizer points. Where the kernels run. */
  const mpe_parameters* parameters;
  float* coefficients;
  /* 1 + G, where the kernels run, MPE_NO_ERROR at the start: a batch that a device refused, then
   * each group's updates that were left out. mpe_take_errors reads them. */
  mpe_error* errors;
  int32_t num_groups;  /* G */
  int32_t drop;        /* 1: an index out of range is dropped; 0: its batch is refused */
  uint64_t admissions; /* 0 at the start; the step's own, the host's */
} mpe_collection;

/* A batch between mpe_open and mpe_close. */
typedef struct mpe_open_batch mpe_open_batch;

/* Outputs, or their gradients, of all tables: one matrix with each table's columns at its `column`,
 * or one matrix a table. Unpooled tables need the latter, unless there is one table alone. */
typedef struct mpe_results {
  mpe_matrix shared;        /* used where `tables` is NULL */
  const mpe_matrix* tables; /* one a feature of the batch, the host's; read during the call */
  int32_t format;           /* of all elements: one of MPE_OUTPUT_FORMATS */
} mpe_results;

/* A batch's share of a backward. */
typedef struct mpe_batch_gradient {
  mpe_open_batch* batch;
  mpe_results grad;   /* of the outputs */
  float* weight_grad; /* room for the gradient of the weights, one an index; or NULL */
} mpe_batch_gradient;

/* What is known of an open batch. */
typedef struct mpe_batch_info {
  int64_t bytes; /* of workspace that it holds */
  int64_t batch_size;
  int64_t num_indices;
  uint64_t capture; /* the capture that it was opened in; 0 outside of all */
  int32_t open;     /* 0: closed; only mpe_free is left */
  int32_t admitted; /* whether mpe_backward may be called */
  int32_t weighted; /* whether it has per-sample weights */
} mpe_batch_info;

/* Checks a batch and finds the rows that it asks for; no state changes. `out`: to be freed by
 * mpe_free; NULL on failure. `error`: one value of the host's, written in any case.
 * MPE_ERR_OFFSETS and MPE_ERR_INDEX are the CPU's. MPE_ERR_VALUE, with `value`: num_features is not
 * the number of tables, a number of bits is neither 32 nor 64, a size is negative, or a group has
 * more than MPE_MAX_LOOKUPS indices or bags. */
MPE_EXPORT mpe_status mpe_open(mpe_collection*, const mpe_batch*, void* stream,
                               mpe_open_batch** out, mpe_error* error);
/* Reads what a device found wrong with an open batch, into one value of the host's; waits for it.
 * Not in a capture. */
MPE_EXPORT mpe_status mpe_batch_error(const mpe_open_batch*, void* stream, mpe_error* out);
/* Unpins the rows of an open batch and gives its workspace back, in the order of `stream`, which
 * must follow all that used it. Closing a closed batch is harmless. */
MPE_EXPORT mpe_status mpe_close(mpe_open_batch*, void* stream);
/* Closes the batch of a capture that has ended: its memory is the graph's. */
MPE_EXPORT void mpe_forget(mpe_open_batch*);
/* Frees a handle, NULL included. It is to be closed before. */
MPE_EXPORT void mpe_free(mpe_open_batch*);
MPE_EXPORT void mpe_describe_batch(const mpe_open_batch*, mpe_batch_info* out);

/* Writes how many lookups each feature of an open batch has, dropped ones included, into
 * num_features values of the host's; waits for a device, where a batch with wrong offsets has none.
 * Not in a capture. */
MPE_EXPORT mpe_status mpe_count_lookups(const mpe_open_batch*, void* stream, int64_t* out);
/* Whether two open batches ask for the same rows in the same bags, so that one that was admitted
 * may take the place of the other. A device compares where the batches lay, not what they hold. */
MPE_EXPORT int32_t mpe_same_rows(const mpe_open_batch*, const mpe_open_batch*);
/* Gives `to` the per-sample weights of another batch with the same rows, or none if that has none;
 * `from` is then only to be closed. */
MPE_EXPORT void mpe_take_weights(mpe_open_batch* to, mpe_open_batch* from);

/* Takes a write step and admits the rows of an open batch: they are pinned until it is closed.
 * MPE_ERR_VALUE if it is admitted already or closed. */
MPE_EXPORT mpe_status mpe_admit(mpe_open_batch*, void* stream);
/* Takes a write step, admits the batch unless mpe_admit has done so, and writes its outputs.
 * `replaced`, or NULL: an open batch that is closed as soon as nothing but a kernel can fail,
 * before the admission, so that its rows may be evicted. MPE_ERR_VALUE if the batch is closed, or
 * the results' format is not one of MPE_OUTPUT_FORMATS; likewise in the functions below. */
MPE_EXPORT mpe_status mpe_forward(mpe_open_batch*, mpe_open_batch* replaced, const mpe_results*,
                                  void* stream);
/* Writes the outputs of an open batch; no state changes. */
MPE_EXPORT mpe_status mpe_evaluate(mpe_open_batch*, const mpe_results*, void* stream);
/* Writes the gradient of the per-sample weights, one an index; no state changes. */
MPE_EXPORT mpe_status mpe_weight_grad(mpe_open_batch*, const mpe_results* grad, float* out,
                                      void* stream);
/* Writes the weights' gradients that are asked for, then takes a write step and one update: each
 * row's gradient is the sum over all n batches, in their order. The batches are closed. Frozen
 * groups are left as they are.
 * MPE_ERR_VALUE, with nothing changed: n is not in 1 .. MPE_MAX_GRADIENTS; a batch comes twice, is
 * closed, not admitted, or another collection's; the gradients' formats differ; or a group's
 * lookups exceed MPE_MAX_LOOKUPS. */
MPE_EXPORT mpe_status mpe_backward(mpe_collection*, const mpe_batch_gradient*, int32_t n,
                                   void* stream);

/* Takes a write step and writes every dirty slot of every group back. */
MPE_EXPORT mpe_status mpe_flush(mpe_collection*, void* stream);
/* Takes a write step and sets rows of one group, as the backend's write_rows does. */
MPE_EXPORT mpe_status mpe_write_rows(mpe_collection*, int32_t group, const uint64_t* keys,
                                     int64_t n, const float* values, void* stream);
/* Reads the collection's errors into 1 + G values of the host's and clears them; waits for a
 * device. Not in a capture. */
MPE_EXPORT mpe_status mpe_take_errors(mpe_collection*, void* stream, mpe_error* out);

#ifdef __cplusplus
}
#endif

#endif
