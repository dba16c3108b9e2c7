// The launchers of the CUDA backend; api.h documents each.
#pragma once

#include "mpembed/api.h"
#include "mpembed/macros.h"

namespace mpembed {
namespace cuda {

mpe_status device_count(int32_t*);
mpe_status describe(int32_t, mpe_device*);
mpe_status current_device(int32_t*);
mpe_status use_device(int32_t);
mpe_status allocate(int64_t, int32_t, void**);
void release(void*, int32_t);
mpe_status borrow(int64_t, void*, void**);
void give_back(void*, void*);
mpe_status copy(void*, const void*, int64_t, void*);
mpe_status fill(void*, int32_t, int64_t, void*);
mpe_status synchronize(void*);
mpe_status create_event(void**);
void destroy_event(void*);
mpe_status record(void*, void*);
mpe_status wait(void*, void*);
const char* last_error(void);
mpe_status check_offsets(const mpe_batch*, void*, mpe_error*);
mpe_status prepare(const mpe_group*, const mpe_batch*, int32_t, const mpe_error*, mpe_lookups*,
                   void*, mpe_error*);
mpe_status discard(const mpe_group*, mpe_lookups*, const mpe_error*, int32_t, mpe_error*, void*);
mpe_status count(const mpe_group*, const mpe_lookups*, const mpe_unique*, int32_t, int32_t, void*);
mpe_status advance(uint64_t*, void*);
mpe_status dedup(const uint64_t*, int64_t, uint64_t, mpe_unique*, void*);
mpe_status cache_admit(const mpe_group*, const mpe_unique*, int64_t, int32_t*, void*);
mpe_status cache_refresh(const mpe_group*, const mpe_unique*, int64_t, const int32_t*, int32_t*,
                         void*);
mpe_status cache_release(const mpe_cache*, const mpe_unique*, int64_t, const int32_t*, void*);
mpe_status cache_flush(const mpe_group*, void*);
mpe_status cache_locate(const mpe_cache*, const uint64_t*, int64_t, int32_t*, void*);
mpe_status scatter_slots(const mpe_unique*, const int32_t*, int64_t, int32_t*, void*);
mpe_status lookup(const mpe_group*, const mpe_lookups*, const int32_t*, const mpe_outputs*, void*);
mpe_status weight_grad(const mpe_group*, const mpe_lookups*, const int32_t*, const mpe_outputs*,
                       float*, void*);
mpe_status update(const mpe_group*, const mpe_optimizer*, const mpe_lookups*, const mpe_unique*,
                  const int32_t*, const mpe_outputs*, mpe_error*, void*);
mpe_status read_rows(const mpe_group*, const uint64_t*, int64_t, float*, void*);
mpe_status write_rows(const mpe_group*, const uint64_t*, int64_t, const float*, void*);
mpe_status init_rows(const mpe_group*, int32_t, int32_t, float, float, void*);
mpe_status check_values(const float*, int64_t, int64_t, int32_t, void*, mpe_error*);
mpe_status quantize(const float*, int64_t, int64_t, int32_t, int32_t, uint64_t, uint64_t, uint8_t*,
                    void*);
mpe_status dequantize(const uint8_t*, int64_t, int64_t, int32_t, float*, void*);
mpe_status check_codes(const uint8_t*, int64_t, int32_t, void*, mpe_error*);
mpe_status pack_codes(const uint8_t*, int64_t, int64_t, int32_t, uint8_t*, void*);
mpe_status unpack_codes(const uint8_t*, int64_t, int64_t, int32_t, uint8_t*, void*);
mpe_status stochastic_round(const float*, int64_t, int32_t, uint64_t, uint64_t, uint16_t*, void*);

}  // namespace cuda
}  // namespace mpembed
