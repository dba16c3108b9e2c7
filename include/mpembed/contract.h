/* The numbers that callers, both backends and Python agree on, each of them once: the limits of the
 * interface, and what docs/numerics.md fixes. What belongs to one format, optimizer or policy alone
 * stands in its header, and the numbers of their names in registry.h. Plain C.
 *
 * Python's mpembed._bindings.contract has every name of this file without MPE_ (its stub lists
 * them): each is a whole number >= 0 on one line. */
#ifndef MPEMBED_CONTRACT_H
#define MPEMBED_CONTRACT_H

#include "mpembed/integers.h"

/* ---- limits ---- */

#define MPE_MAX_TABLES 65535            /* of one seed: the random counter has 16 bits for them */
#define MPE_MAX_ROWS (INT64_C(1) << 47) /* of a table */
#define MPE_MAX_DIM (INT32_C(1) << 20)  /* columns of a row */
#define MPE_MAX_LOOKUPS INT32_MAX       /* of a group in a batch; the same for its bags */
#define MPE_MAX_SEED UINT64_MAX
#define MPE_MAX_STEP ((UINT64_C(1) << 40) - 1) /* the write step, see advance */
#define MPE_MAX_SETS (INT64_C(1) << 26)        /* of a cache */
#define MPE_MIN_WAYS 8                         /* slots of a set, a power of two */
#define MPE_MAX_WAYS 32
#define MPE_MAX_SLOTS INT32_MAX /* sets x ways */
#define MPE_MAX_THREADS 1024    /* of the CPU backend */

/* From this size on, the CPU's allocate returns zeroed pages of their own, see there. */
#define MPE_MAPPED_BYTES (INT64_C(1) << 20)

/* ---- keys and tags (docs/numerics.md, section 6) ---- */

#define MPE_DROPPED UINT64_MAX /* the key of an index that was dropped */

/* A tag is a linear row id, the number of open batches that pin the slot, and the dirty bit. */
#define MPE_ID_MASK ((UINT64_C(1) << 48) - 1)
#define MPE_EMPTY_TAG MPE_ID_MASK
#define MPE_MAX_PINS 127
#define MPE_ONE_PIN (UINT64_C(1) << 56)
#define MPE_PIN_MASK (MPE_MAX_PINS * MPE_ONE_PIN)
#define MPE_DIRTY_BIT (UINT64_C(1) << 63)

/* ---- the sketch of a policy that counts (section 6) ---- */

#define MPE_SKETCH_ROWS 4
#define MPE_MAX_COUNT 255     /* of a cell and of a slot */
#define MPE_HALVING_PERIOD 16 /* counts are halved after this many unique rows a slot */

/* ---- orders of summation and of draws (sections 1 and 5) ---- */

#define MPE_GRADIENT_BLOCK 64  /* occurrences of a row in one partial sum of its gradient */
#define MPE_TREE_LANES 32      /* lane sums of a dot product */
#define MPE_ROUND_COLUMNS 1024 /* elements that stochastic_round takes for one row */
#define MPE_PAIR_STEPS 1024    /* a row's pair of writes falls into one such piece of the steps */

/* ---- what collections and updates do unless they are told otherwise ---- */

#define MPE_DEFAULT_ROUNDING 2 /* its number in registry.h: paired */

/* ---- the report on rounding (section 7) ---- */

#define MPE_NOISE_SAMPLE_BITS 10   /* one of 2^10 writes of rows is measured */
#define MPE_NOISE_FRACTION_BITS 30 /* sums count squares in units of 2^-30 */
#define MPE_NOISE_MAX 1024         /* the most that a square counts */

/* ---- optimizers (section 5) ---- */

#define MPE_STATE_ROW 1            /* a state of a value a row */
#define MPE_STATE_ELEMENT 2        /* a state of a value an element */
#define MPE_MAX_STATES 2           /* of an optimizer */
#define MPE_MAX_PARAMETERS 8       /* learning rate, weight decay, and an optimizer's own */
#define MPE_MAX_COEFFICIENTS 8     /* what an update reads instead of them */
#define MPE_MAX_GRADIENTS 16       /* batches that one update sums up */
#define MPE_MAX_OWN_OPTIMIZERS 256 /* that a process registers */
#define MPE_SHORT_ROW 256          /* columns: kernels of a device update longer rows in rounds */

#endif
