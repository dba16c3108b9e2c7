// The kernels of one instruction-set level; api.h documents each.
#pragma once

#include "mpembed/api.h"
#include "mpembed/macros.h"

MPE_BEGIN

mpe_status check_offsets(const mpe_batch*, void*, mpe_error*);
mpe_status prepare(const mpe_group*, const mpe_batch*, int32_t, mpe_lookups*, int64_t*, void*,
                   mpe_error*);
mpe_status dedup(const uint64_t*, int64_t, uint64_t, mpe_unique*, void*);
mpe_status cache_admit(const mpe_group*, const mpe_unique*, int32_t*, void*);
mpe_status cache_refresh(const mpe_group*, const mpe_unique*, const int32_t*, int32_t*, void*);
void cache_release(const mpe_cache*, const int32_t*, int64_t, void*);
mpe_status cache_flush(const mpe_group*, void*);
void cache_locate(const mpe_cache*, const uint64_t*, int64_t, int32_t*, void*);
void scatter_slots(const mpe_unique*, const int32_t*, int64_t, int32_t*, void*);
mpe_status lookup(const mpe_group*, const mpe_lookups*, const int32_t*, const mpe_matrix*, void*);
mpe_status weight_grad(const mpe_group*, const mpe_lookups*, const int32_t*, const mpe_matrix*,
                       float*, void*);
mpe_status update(const mpe_group*, const mpe_optimizer*, const mpe_lookups*, const mpe_unique*,
                  const int32_t*, const mpe_matrix*, int64_t*, uint64_t*, void*);
mpe_status write_rows(const mpe_group*, const uint64_t*, int64_t, const float*, void*);
mpe_status init_rows(const mpe_group*, int32_t, int32_t, float, float, void*);
mpe_status check_values(const float*, int64_t, int64_t, int32_t, void*, mpe_error*);
mpe_status quantize(const float*, int64_t, int64_t, int32_t, int32_t, uint64_t, uint64_t, uint8_t*,
                    void*);
mpe_status dequantize(const uint8_t*, int64_t, int64_t, int32_t, float*, void*);
mpe_status pack_codes(const uint8_t*, int64_t, int64_t, int32_t, uint8_t*, void*);
mpe_status unpack_codes(const uint8_t*, int64_t, int64_t, int32_t, uint8_t*, void*);
mpe_status stochastic_round(const float*, int64_t, int32_t, uint64_t, uint64_t, uint16_t*, void*);

MPE_END
