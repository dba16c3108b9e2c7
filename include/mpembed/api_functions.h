/* The functions of a backend, in the order of its table. They are the members of mpe_backend in
 * api.h, which says what holds for all of them: call backend->allocate(...). Plain C.
 *
 * Each is declared here and nowhere else, as MPE_FUNCTION(result, name, (arguments)). Whoever
 * includes this file defines that macro first, as what it needs: members, declarations, entries. */
#ifndef MPE_FUNCTION
#define MPE_FUNCTION(result, name, arguments)
#endif

/* ---- devices and memory -------------------------------------------------------------------------
 * A device is a number below device_count; the CPU has one. */

MPE_FUNCTION(mpe_status, device_count, (int32_t* count))
/* Name, memory and compute capability of a device. */
MPE_FUNCTION(mpe_status, describe, (int32_t device, mpe_device* out))
/* The device of this thread's calls. */
MPE_FUNCTION(mpe_status, current_device, (int32_t* device))
/* The same from now on, for the CUDA runtime's other users in this thread too. */
MPE_FUNCTION(mpe_status, use_device, (int32_t device))
/* 1 where this process has a context on the device, or where that cannot be known; otherwise 0: to
 * choose it would make one, which takes hundreds of megabytes of its memory. */
MPE_FUNCTION(mpe_status, device_in_use, (int32_t device, int32_t* in_use))

/* Memory that kernels of this backend can reach, aligned for any type and not initialised.
 * placement: an mpe_placement, which the CPU ignores. 0 bytes give a pointer to be released.
 * The CPU's starts at a cache line. From MPE_MAPPED_BYTES on it starts at a multiple of 2 MiB, lies
 * on huge pages where the system has them, and is zero. */
MPE_FUNCTION(mpe_status, allocate, (int64_t bytes, int32_t placement, void** out))
/* p: of allocate with the same placement, or NULL. No work that uses it may be under way: CUDA
 * waits for what uses a device's memory before it frees that, but does not promise it of the
 * host's. */
MPE_FUNCTION(void, release, (void* p, int32_t placement))
/* The same in the order of a stream, for what lives between two calls. */
MPE_FUNCTION(mpe_status, borrow, (int64_t bytes, void* stream, void** out))
MPE_FUNCTION(void, give_back, (void* p, void* stream))
/* Between the host's memory and the kernels', in any direction; the host's (not pinned) may be
 * used again at return when it is the source, and after synchronize when it is the target. Not for
 * a stream that is captured, where the host's memory is the source. */
MPE_FUNCTION(mpe_status, copy, (void* to, const void* from, int64_t bytes, void* stream))
/* Sets bytes of the kernels' memory. */
MPE_FUNCTION(mpe_status, fill, (void* p, int32_t byte, int64_t bytes, void* stream))

/* ---- streams and graphs -------------------------------------------------------------------------
 * An event belongs to the device that was current when it was made. */

/* Waits until all work that the stream was given is done. */
MPE_FUNCTION(mpe_status, synchronize, (void* stream))
MPE_FUNCTION(mpe_status, create_event, (void** out))
MPE_FUNCTION(void, destroy_event, (void* event))
/* What `stream` is given after `wait` starts when the work that was given to the event's stream
 * before `record` is done; at once where nothing was recorded. */
MPE_FUNCTION(mpe_status, record, (void* event, void* stream))
MPE_FUNCTION(mpe_status, wait, (void* event, void* stream))
/* Lets the calling thread wait for the same, also while another thread captures a graph. */
MPE_FUNCTION(mpe_status, wait_on_host, (void* event))
/* Graphs: the number of the capture that `stream` is part of, 0 if it is in none, UINT64_MAX if
 * an error has spoiled it. While it is in one, only functions that return nothing from the device
 * may be called on it, with memory and events that live as long as the graph, or are borrowed and
 * given back within the capture. The two others are for such a stream: each launch of its graph
 * waits for what an event recorded last, or lets the event record; all else that event is used
 * for lies outside of graphs. */
MPE_FUNCTION(mpe_status, capturing, (void* stream, uint64_t* capture))
MPE_FUNCTION(mpe_status, wait_in_graph, (void* event, void* stream))
MPE_FUNCTION(mpe_status, record_in_graph, (void* event, void* stream))
/* What the device's runtime said last in this thread; never NULL, valid until the thread's next
 * call that fails. */
MPE_FUNCTION(const char*, last_error, (void))

/* ---- a batch ------------------------------------------------------------------------------------
 * In this order: check_offsets once (the CPU), prepare for each group, discard once (a device),
 * dedup for each group (the CPU). */

/* Are the offsets monotone, do they start at 0 and end at num_indices? Else MPE_ERR_OFFSETS.
 * error: one value, written in any case. A device needs no such call, as its prepare checks. */
MPE_FUNCTION(mpe_status, check_offsets, (const mpe_batch*, void* stream, mpe_error*))
/* Fills all of the lookups but n and batch_size (weights where the batch has them). drop: an
 * index out of range gets MPE_DROPPED and is counted in `dropped`; otherwise it is MPE_ERR_INDEX,
 * and the lookups are not to be used. A device also says here what is wrong with the offsets of the
 * group's tables; the lookups of no group are to be used then before they went through discard.
 * The last argument: one value, written in any case. */
MPE_FUNCTION(mpe_status, prepare,
             (const mpe_group*, const mpe_batch*, int32_t drop, mpe_lookups*, void* stream,
              mpe_error*))
/* Of several groups of a batch at once. If one of the n errors of the batch is set, every key
 * becomes MPE_DROPPED, every bag empty and `dropped` zero; what is wrong goes to `sink` unless that
 * holds an error already: the offsets' error, else that of the smallest position with the count of
 * all. n is 0 where nothing can be wrong; sink is not read then. Unique rows are found as by dedup
 * with all rows of the group as the limit; on a device by one sort for up to eight groups. */
MPE_FUNCTION(mpe_status, discard,
             (const mpe_share*, int32_t count, const mpe_error* errors, int32_t n, mpe_error* sink,
              void* stream))
/* The unique ones of n keys that are below `limit` (the rows of the group); dropped lookups have
 * no position. */
MPE_FUNCTION(mpe_status, dedup,
             (const uint64_t* keys, int64_t n, uint64_t limit, mpe_unique*, void* stream))
/* Adds to the tables' statistics: accesses and dropped lookups where asked for, and unique rows
 * where `unique` is not NULL. cache_admit counts accesses and unique rows itself. */
MPE_FUNCTION(mpe_status, count,
             (const mpe_group*, const mpe_lookups*, const mpe_unique* unique, int32_t accesses,
              int32_t dropped, void* stream))
/* step += 1. Random bits are drawn anew at each step: it is taken before each cache_admit,
 * update, cache_flush and write_rows of a collection, once for all of its groups. Where two
 * functions have a `step`, which may be NULL, they take it themselves if they do not fail. */
MPE_FUNCTION(mpe_status, advance, (uint64_t* step, void* stream))

/* Begins an update of a collection, on all of its tables at once: ++*updates, then each table's
 * coefficients (n x MPE_MAX_COEFFICIENTS) from its parameters and that count. */
MPE_FUNCTION(mpe_status, begin_update,
             (uint64_t* step, const mpe_parameters* tables, int64_t n, uint64_t* updates,
              float* coefficients, void* stream))

/* ---- the cache ----------------------------------------------------------------------------------
 * Of a group that has one. n: the lookups that dedup was given. Slots are int32, set * ways +
 * way, or -1 for a row that is not cached; slots[u] is that of unique row u, in room for as many
 * (a device: for n). */

/* Admission of a training batch: fills the slots, reads the admitted rows and their states from the
 * tables, writes dirty victims and theirs back, and pins every cached row of the batch once: it
 * stays until cache_release. A slot bears MPE_MAX_PINS. The tables' statistics count all of it, and
 * what the batch dropped: `dropped` of its lookups, or NULL. found: room for what it finds, with
 * slots for as many as above, or NULL. */
MPE_FUNCTION(mpe_status, cache_admit,
             (const mpe_group*, const mpe_unique*, int64_t n, const int64_t* dropped,
              uint64_t* step, int32_t* slots, const mpe_found* found, void* stream))
/* fresh[u] = slots[u]; rows that had none are looked up again, without a pin: another admission
 * may have cached them meanwhile. Changes nothing else. fresh may be slots itself. */
MPE_FUNCTION(mpe_status, cache_refresh,
             (const mpe_group*, const mpe_unique*, int64_t n, const int32_t* slots, int32_t* fresh,
              void* stream))
/* Takes back the pins of an admission; slots: those of cache_admit. */
MPE_FUNCTION(mpe_status, cache_release,
             (const mpe_cache*, const mpe_unique*, int64_t n, const int32_t* slots, void* stream))
/* Writes every dirty slot, states included, back to its table and marks it clean; rows stay
 * cached. */
MPE_FUNCTION(mpe_status, cache_flush, (const mpe_group*, void* stream))
/* slots[i] of each of n keys; changes nothing, for evaluation. */
MPE_FUNCTION(mpe_status, cache_locate,
             (const mpe_cache*, const uint64_t* keys, int64_t n, int32_t* slots, void* stream))
/* slots[i] of each of n lookups out of the slots of the unique rows, -1 for dropped ones. */
MPE_FUNCTION(mpe_status, scatter_slots,
             (const mpe_unique*, const int32_t* unique_slots, int64_t n, int32_t* slots,
              void* stream))

/* ---- training -------------------------------------------------------------------------------- */

/* The forward of n groups at once, each its share of the same batch or of another one. Writes
 * the outputs, reads all else. */
MPE_FUNCTION(mpe_status, lookup, (const mpe_lookup_args*, int32_t n, void* stream))
/* Gradient of the per-sample weights, one an index of the batch (out: N; a group writes the
 * positions of its own tables). slots: one a lookup, or NULL. grad: of the outputs. */
MPE_FUNCTION(mpe_status, weight_grad,
             (const mpe_group*, const mpe_lookups*, const int32_t* slots, const mpe_outputs* grad,
              float* out, void* stream))
/* The fused backward: sums each unique row's gradient over its lookups in all n batches (1 ..
 * MPE_MAX_GRADIENTS) and takes one optimizer step, in the cache (the slot becomes dirty) or
 * straight in the table, with the row's states. The group has an optimizer. unique: of the batches'
 * keys one after the other, each batch `lookups->n` of them. slots: one a unique row, as they are
 * now, or NULL; with `fresh`, room for as many, those of the cache_admit of the only batch, which
 * are refreshed there and lose their pins, as by cache_refresh and cache_release; then also what
 * that admission found, or NULL: a device reads what it admitted in the tables, in fewer bytes, if
 * no write step was taken since but this update's. A row whose update would not be finite stays as
 * it was and is added to `nonfinite` (which starts as MPE_NO_ERROR): status, smallest value, count;
 * the function returns MPE_OK all the same. MPE_ERR_VALUE, with nothing changed, if the format of a
 * table's state is not one of MPE_STATE_FORMATS. */
MPE_FUNCTION(mpe_status, update,
             (const mpe_group*, const mpe_gradient*, int32_t n, const mpe_unique*,
              const int32_t* slots, int32_t* fresh, const mpe_found*, mpe_error* nonfinite,
              void* stream))

/* ---- rows ------------------------------------------------------------------------------------ */

/* Values (n x D) of whole rows as they are now, cached or not. Keys are linear row ids, checked
 * by the caller. */
MPE_FUNCTION(mpe_status, read_rows,
             (const mpe_group*, const uint64_t* keys, int64_t n, float* values, void* stream))
/* The same the other way, keys without duplicates, values storable (check_values): a cached row
 * in FP32, any other rounded into its table. */
MPE_FUNCTION(mpe_status, write_rows,
             (const mpe_group*, const uint64_t* keys, int64_t n, const float* values, void* stream))
/* The initial rows of the group's table number `table`, at step 0. kind: MPE_init_..., uniform
 * in a .. b, or normal with a standard deviation of a. */
MPE_FUNCTION(mpe_status, init_rows,
             (const mpe_group*, int32_t table, int32_t kind, float a, float b, void* stream))

/* ---- rows without a group -----------------------------------------------------------------------
 * x: n x dim values; rows: n x row_bytes; both dense. The table of their random key is 0. */

/* MPE_ERR_VALUE if some row cannot be stored: not finite, or beyond the format's range. */
MPE_FUNCTION(mpe_status, check_values,
             (const float* x, int64_t n, int64_t dim, int32_t precision, void* stream, mpe_error*))
MPE_FUNCTION(mpe_status, quantize,
             (const float* x, int64_t n, int64_t dim, int32_t precision, int32_t rounding,
              uint64_t seed, uint64_t step, uint8_t* rows, void* stream))
MPE_FUNCTION(mpe_status, dequantize,
             (const uint8_t* rows, int64_t n, int64_t dim, int32_t precision, float* x,
              void* stream))
/* MPE_ERR_VALUE if some of n codes takes more bits: its position and value, and how many. */
MPE_FUNCTION(mpe_status, check_codes,
             (const uint8_t* codes, int64_t n, int32_t bits, void* stream, mpe_error*))
/* bits: 4 or 2. n rows of dim codes, one a byte, to and from rows of ceil(dim * bits / 8) bytes.
 */
MPE_FUNCTION(mpe_status, pack_codes,
             (const uint8_t* codes, int64_t n, int64_t dim, int32_t bits, uint8_t* packed,
              void* stream))
MPE_FUNCTION(mpe_status, unpack_codes,
             (const uint8_t* packed, int64_t n, int64_t dim, int32_t bits, uint8_t* codes,
              void* stream))
/* n values to bit patterns. precision: MPE_format_fp16 or _bf16; x storable. */
MPE_FUNCTION(mpe_status, stochastic_round,
             (const float* x, int64_t n, int32_t precision, uint64_t seed, uint64_t step,
              uint16_t* out, void* stream))

#undef MPE_FUNCTION
