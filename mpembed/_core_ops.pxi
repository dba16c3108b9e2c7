# Stateless kernels; part of _core.pyx.

def unstorable(View x, int64_t n, int64_t dim, int precision):
    """Return (first row, number of rows) that a precision cannot store, or None."""
    cdef mpe_error error
    cdef mpe_status status
    with nogil:
        status = KERNELS.check_values(<const float*>x.data, n, dim, precision, NULL, &error)
    if status == MPE_ERR_VALUE:
        return error.position, error.count
    _check(status, "check_values")
    return None


def quantize(View x, int64_t n, int64_t dim, int precision, int rounding, uint64_t seed,
             uint64_t step, View rows):
    cdef mpe_status status
    with nogil:
        status = KERNELS.quantize(<const float*>x.data, n, dim, precision, rounding, seed, step,
                                  <uint8_t*>rows.data, NULL)
    _check(status, "quantize")


def dequantize(View rows, int64_t n, int64_t dim, int precision, View x):
    cdef mpe_status status
    with nogil:
        status = KERNELS.dequantize(<const uint8_t*>rows.data, n, dim, precision,
                                    <float*>x.data, NULL)
    _check(status, "dequantize")


def pack_codes(View codes, int64_t n, int64_t dim, int bits, View packed):
    cdef mpe_status status
    with nogil:
        status = KERNELS.pack_codes(<const uint8_t*>codes.data, n, dim, bits,
                                    <uint8_t*>packed.data, NULL)
    _check(status, "pack")


def unpack_codes(View packed, int64_t n, int64_t dim, int bits, View codes):
    cdef mpe_status status
    with nogil:
        status = KERNELS.unpack_codes(<const uint8_t*>packed.data, n, dim, bits,
                                      <uint8_t*>codes.data, NULL)
    _check(status, "unpack")


def stochastic_round(View x, int64_t n, int precision, uint64_t seed, uint64_t step, View out):
    cdef mpe_status status
    with nogil:
        status = KERNELS.stochastic_round(<const float*>x.data, n, precision, seed, step,
                                          <uint16_t*>out.data, NULL)
    _check(status, "stochastic_round")


def unique_keys(keys):
    """Return (unique ascending, starts, positions) of a uint64 array below 2^64 - 1."""
    cdef mpe_unique u
    cdef mpe_status status
    cdef int64_t n = len(keys), count = 0
    rows, starts = np.empty(n, np.uint64), np.empty(n + 1, np.int64)
    positions = np.empty(n, np.int32)
    cdef const uint64_t* p = <const uint64_t*>_data(keys)
    u.count = &count
    u.rows, u.starts = <uint64_t*>_data(rows), <int64_t*>_data(starts)
    u.positions = <int32_t*>_data(positions)
    cdef uint64_t limit = int(keys.max()) + 1 if n else 1
    with nogil:
        status = KERNELS.dedup(p, n, limit, &u, NULL)
    _check(status, "unique_rows")
    return rows[:count].copy(), starts[:count + 1].copy(), positions


def cache_lookup(View tags, keys, View out):
    """Slots of uint64 keys in a (num_sets, ways) tag array."""
    cdef mpe_cache cache
    cache.tags = <uint64_t*>tags.data
    cache.num_sets, cache.ways = tags.extent[0], tags.extent[1]
    cdef const uint64_t* p = <const uint64_t*>_data(keys)
    cdef int64_t n = len(keys)
    with nogil:
        KERNELS.cache_locate(&cache, p, n, <int32_t*>out.data, NULL)
