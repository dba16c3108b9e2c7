/* The C API to whole kernels: plain C, one function table a backend. docs/cpp.md shows how to
 * link it, examples/cpp/ how to train through it; api_functions.h has the functions of a backend,
 * api_types.h the structs, contract.h their limits.
 *
 * Ownership. Kernels keep no state and no pointer. Every array is the caller's and lies where the
 * backend's kernels run; the structs themselves, and what a comment calls the host's, lie in host
 * memory and are read during the call only.
 *
 * Threads. Functions may be called from any thread; two calls that touch the same arrays must not
 * overlap. last_error and the current device are a thread's own.
 *
 * The CPU backend returns when the work is done: arrays must live for the call, the status says
 * what is wrong with the input, and nothing has been changed then, except where a comment says
 * otherwise. `stream` is ignored.
 *
 * A device backend returns when its work is queued on `stream` (a cudaStream_t; NULL is the legacy
 * default stream) of the thread's current device: arrays must live until that work is done, the
 * status speaks of the launch only, and what is wrong with the input is written to the error, in
 * device memory, for the caller to read later; a batch with such an error changes nothing (see
 * discard). Work on several streams is ordered by the caller.
 *
 * Errors. Every status but MPE_OK is a failure. What can be checked cheaply is checked by the
 * functions named check_ and by prepare; all other functions trust their arguments, as memcpy does.
 * MPE_ERR_MEMORY comes before a function has changed anything; MPE_ERR_DEVICE only from a device.
 *
 * Versions. MPE_API_VERSION grows whenever a program that was compiled before would misbehave: with
 * a struct, a signature, an order or a meaning. New functions outside of the table, and new numbers
 * at the end of a list of registry.h, leave it. A program checks that the backend's api_version is
 * the MPE_API_VERSION it was compiled with.
 *
 * The arithmetic and every order of summation: docs/numerics.md.
 */
#ifndef MPEMBED_API_H
#define MPEMBED_API_H

#include "mpembed/api_types.h"

#ifdef __cplusplus
extern "C" {
#endif

#define MPE_API_VERSION 5
#define MPE_EXPORT __attribute__((visibility("default")))

typedef struct mpe_backend {
  int32_t api_version; /* the MPE_API_VERSION of its build; always first */
  const char* name;    /* "cpu", "cuda" */
  const char* level;   /* instruction set or architectures */

#define MPE_FUNCTION(result, name, arguments) result(*name) arguments;
#include "mpembed/api_functions.h"
} mpe_backend;

/* The CPU backend at the best instruction set of this machine, capped by MPEMBED_ISA (base, avx2),
 * which is read at the first call. Never NULL; lives as long as the library. */
MPE_EXPORT const mpe_backend* mpe_cpu_backend(void);
/* The CUDA backend, in a library of its own; it needs no driver before its functions are called.
 * Never NULL. */
MPE_EXPORT const mpe_backend* mpe_cuda_backend(void);
/* Bytes of a row of dim values, -1 for an unknown precision. code_bytes: the same without the
 * header. */
MPE_EXPORT int64_t mpe_row_bytes(int32_t precision, int64_t dim);
MPE_EXPORT int64_t mpe_code_bytes(int32_t precision, int64_t dim);
/* What an optimizer keeps: how many states, at most MPE_MAX_STATES; of each its name, its shape
 * (MPE_STATE_ROW or MPE_STATE_ELEMENT of contract.h) and its initial value. */
MPE_EXPORT int32_t mpe_num_states(int32_t optimizer);
MPE_EXPORT const char* mpe_state_name(int32_t optimizer, int32_t state);
MPE_EXPORT int32_t mpe_state_shape(int32_t optimizer, int32_t state);
MPE_EXPORT float mpe_state_initial(int32_t optimizer, int32_t state);
/* The name of an optimizer's parameter number i: "lr", "weight_decay", then its own; NULL at the
 * end. */
MPE_EXPORT const char* mpe_parameter_name(int32_t optimizer, int32_t i);
/* Makes an optimizer of the caller's own known to this process, for good: `number` is what stands
 * for it as MPE_optimizer_... does for those of registry.h; the same one again gets the same
 * number. Texts are copied. MPE_ERR_VALUE if another one has the name, there are
 * MPE_MAX_OWN_OPTIMIZERS already, or its states or parameters are too many. */
MPE_EXPORT mpe_status mpe_register_optimizer(const mpe_own_optimizer* optimizer, int32_t* number);
/* Gives the CUDA backend the kernels of such an optimizer, once for each device, set of formats and
 * size of rows: for the current device and for groups whose tables' precisions are among `formats`,
 * a bit each; long_rows: of more than MPE_SHORT_ROW columns, or of no more. code: a CUDA binary of
 * the kernels of kernels/cuda/own_kernels.cuh, for just these. MPE_ERR_DEVICE with the backend's
 * last_error if it cannot be loaded. In the library of the CUDA backend. */
MPE_EXPORT mpe_status mpe_cuda_load_optimizer(int32_t number, const mpe_own_optimizer* optimizer,
                                              uint32_t formats, int32_t long_rows,
                                              const void* code);
/* FP32 values of a cache slot: in mpe_cache.rows, and in mpe_cache.values. optimizer: -1 for frozen
 * tables. */
MPE_EXPORT int64_t mpe_slot_floats(int32_t optimizer, int64_t dim);
MPE_EXPORT int64_t mpe_slot_values(int32_t optimizer);
/* Whether a policy keeps a sketch. */
MPE_EXPORT int32_t mpe_policy_has_sketch(int32_t policy);
/* CPU threads of the whole process: the count (>= 1; MPEMBED_NUM_THREADS, else OMP_NUM_THREADS,
 * else the processors of the affinity mask), and a setter that clamps to 1 .. MPE_MAX_THREADS.
 * Results do not depend on it. A child that was forked after the pool had started stays on one. */
MPE_EXPORT int32_t mpe_get_num_threads(void);
MPE_EXPORT void mpe_set_num_threads(int32_t n);
/* The name of a variable of the environment that holds no known value and is therefore ignored:
 * MPEMBED_NUM_THREADS or MPEMBED_ISA; NULL if both are right. */
MPE_EXPORT const char* mpe_invalid_variable(void);

#ifdef __cplusplus
}
#endif

#endif
