"""Declarations of include/mpembed/api.h."""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t

cdef extern from "mpembed/api.h" nogil:
    ctypedef enum mpe_status:
        MPE_OK
        MPE_ERR_INDEX
        MPE_ERR_OFFSETS
        MPE_ERR_VALUE
        MPE_ERR_MEMORY
        MPE_ERR_NONFINITE
        MPE_ERR_DEVICE

    const uint64_t MPE_DROPPED
    const int MPE_API_VERSION
    const int MPE_NUM_STATS
    const int MPE_pooling_none

    ctypedef struct mpe_error:
        int32_t status
        int32_t table
        int64_t position
        int64_t value
        int64_t count

    ctypedef struct mpe_table:
        uint8_t *rows
        void *state
        int64_t *stats
        int64_t num_rows
        int64_t base
        int32_t precision
        int32_t table_id
        int32_t pooling
        int32_t feature
        int32_t state_format
        int64_t column

    ctypedef struct mpe_cache:
        uint64_t *tags
        uint32_t *meta
        float *rows
        uint8_t *sketch
        uint64_t *counters
        int64_t num_sets
        int64_t sketch_width
        int32_t ways
        int32_t policy

    ctypedef struct mpe_group:
        const mpe_table *tables
        const mpe_table *device_tables
        const mpe_cache *cache
        const uint64_t *step
        uint64_t seed
        int32_t num_tables
        int32_t dim
        int32_t rounding

    ctypedef struct mpe_batch:
        const void *indices
        const void *offsets
        const float *weights
        int64_t num_indices
        int64_t batch_size
        int32_t num_features
        int32_t index_bits
        int32_t offset_bits

    ctypedef struct mpe_lookups:
        int64_t n
        int64_t batch_size
        uint64_t *keys
        int32_t *bags
        int64_t *bag_offsets
        int64_t *origins
        int64_t *dropped
        float *weights

    ctypedef struct mpe_unique:
        int64_t *count
        uint64_t *rows
        int64_t *starts
        int32_t *positions

    ctypedef struct mpe_matrix:
        float *data
        int64_t stride

    ctypedef struct mpe_outputs:
        mpe_matrix shared
        const mpe_matrix *tables

    ctypedef struct mpe_part:
        const mpe_group *group
        const mpe_lookups *lookups
        const int32_t *slots
        const mpe_outputs *outputs

    ctypedef struct mpe_optimizer:
        int32_t kind
        int32_t decay_mode
        float lr
        float eps
        float weight_decay
        const float *device_lr

    ctypedef enum mpe_placement:
        MPE_PLACEMENT_DEVICE
        MPE_PLACEMENT_HOST

    ctypedef struct mpe_device:
        char name[256]
        int64_t memory
        int32_t major
        int32_t minor

    ctypedef struct mpe_backend:
        int32_t api_version
        const char *name
        const char *level
        mpe_status (*device_count)(int32_t *) noexcept nogil
        mpe_status (*describe)(int32_t, mpe_device *) noexcept nogil
        mpe_status (*current_device)(int32_t *) noexcept nogil
        mpe_status (*use_device)(int32_t) noexcept nogil
        mpe_status (*allocate)(int64_t, int32_t, void **) noexcept nogil
        void (*release)(void *, int32_t) noexcept nogil
        mpe_status (*borrow)(int64_t, void *, void **) noexcept nogil
        void (*give_back)(void *, void *) noexcept nogil
        mpe_status (*copy)(void *, const void *, int64_t, void *) noexcept nogil
        mpe_status (*fill)(void *, int32_t, int64_t, void *) noexcept nogil
        mpe_status (*synchronize)(void *) noexcept nogil
        mpe_status (*create_event)(void **) noexcept nogil
        void (*destroy_event)(void *) noexcept nogil
        mpe_status (*record)(void *, void *) noexcept nogil
        mpe_status (*wait)(void *, void *) noexcept nogil
        mpe_status (*capturing)(void *, uint64_t *) noexcept nogil
        mpe_status (*wait_in_graph)(void *, void *) noexcept nogil
        mpe_status (*record_in_graph)(void *, void *) noexcept nogil
        const char *(*last_error)() noexcept nogil
        mpe_status (*check_offsets)(const mpe_batch *, void *, mpe_error *) noexcept nogil
        mpe_status (*prepare)(const mpe_group *, const mpe_batch *, int32_t, const mpe_error *,
                              mpe_lookups *, void *, mpe_error *) noexcept nogil
        mpe_status (*discard)(const mpe_group *, mpe_lookups *, const mpe_error *, int32_t,
                              mpe_error *, void *) noexcept nogil
        mpe_status (*dedup)(const uint64_t *, int64_t, uint64_t, mpe_unique *,
                            void *) noexcept nogil
        mpe_status (*count)(const mpe_group *, const mpe_lookups *, const mpe_unique *, int32_t,
                            int32_t, void *) noexcept nogil
        mpe_status (*advance)(uint64_t *, void *) noexcept nogil
        mpe_status (*cache_admit)(const mpe_group *, const mpe_unique *, int64_t, int32_t *,
                                  void *) noexcept nogil
        mpe_status (*cache_refresh)(const mpe_group *, const mpe_unique *, int64_t,
                                    const int32_t *, int32_t *, void *) noexcept nogil
        mpe_status (*cache_release)(const mpe_cache *, const mpe_unique *, int64_t,
                                    const int32_t *, void *) noexcept nogil
        mpe_status (*cache_flush)(const mpe_group *, void *) noexcept nogil
        mpe_status (*cache_locate)(const mpe_cache *, const uint64_t *, int64_t, int32_t *,
                                   void *) noexcept nogil
        mpe_status (*scatter_slots)(const mpe_unique *, const int32_t *, int64_t, int32_t *,
                                    void *) noexcept nogil
        mpe_status (*lookup)(const mpe_part *, int32_t, void *) noexcept nogil
        mpe_status (*weight_grad)(const mpe_group *, const mpe_lookups *, const int32_t *,
                                  const mpe_outputs *, float *, void *) noexcept nogil
        mpe_status (*update)(const mpe_group *, const mpe_optimizer *, const mpe_lookups *,
                             const mpe_unique *, const int32_t *, const mpe_outputs *,
                             mpe_error *, void *) noexcept nogil
        mpe_status (*read_rows)(const mpe_group *, const uint64_t *, int64_t, float *,
                                void *) noexcept nogil
        mpe_status (*write_rows)(const mpe_group *, const uint64_t *, int64_t, const float *,
                                 void *) noexcept nogil
        mpe_status (*init_rows)(const mpe_group *, int32_t, int32_t, float, float,
                                void *) noexcept nogil
        mpe_status (*check_values)(const float *, int64_t, int64_t, int32_t, void *,
                                   mpe_error *) noexcept nogil
        mpe_status (*quantize)(const float *, int64_t, int64_t, int32_t, int32_t, uint64_t,
                               uint64_t, uint8_t *, void *) noexcept nogil
        mpe_status (*dequantize)(const uint8_t *, int64_t, int64_t, int32_t, float *,
                                 void *) noexcept nogil
        mpe_status (*check_codes)(const uint8_t *, int64_t, int32_t, void *,
                                  mpe_error *) noexcept nogil
        mpe_status (*pack_codes)(const uint8_t *, int64_t, int64_t, int32_t, uint8_t *,
                                 void *) noexcept nogil
        mpe_status (*unpack_codes)(const uint8_t *, int64_t, int64_t, int32_t, uint8_t *,
                                   void *) noexcept nogil
        mpe_status (*stochastic_round)(const float *, int64_t, int32_t, uint64_t, uint64_t,
                                       uint16_t *, void *) noexcept nogil

    const mpe_backend *mpe_cpu_backend()
    const mpe_backend *mpe_cuda_backend()
    int64_t mpe_row_bytes(int32_t, int64_t)
    int64_t mpe_code_bytes(int32_t, int64_t)
    int32_t mpe_state_shape(int32_t)
    int32_t mpe_policy_has_sketch(int32_t)
    int32_t mpe_get_num_threads()
    void mpe_set_num_threads(int32_t)
    const char *mpe_invalid_variable()
