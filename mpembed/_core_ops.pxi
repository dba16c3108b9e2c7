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


def unique_keys(keys, View rows, View starts, View positions):
    """Fill `rows` (ascending), `starts` and `positions` from uint64 keys; return how many rows."""
    cdef mpe_unique u
    cdef mpe_status status
    cdef int64_t n = len(keys), count = 0
    cdef const uint64_t* p = <const uint64_t*>_data(keys)
    cdef uint64_t limit = int(keys.max()) + 1 if n else 1
    u.count = &count
    u.rows, u.starts = <uint64_t*>rows.data, <int64_t*>starts.data
    u.positions = <int32_t*>positions.data
    with nogil:
        status = KERNELS.dedup(p, n, limit, &u, NULL)
    _check(status, "unique_rows")
    return count


def cache_lookup(View tags, keys, View out):
    """Slots of uint64 keys in a (num_sets, ways) tag array."""
    cdef mpe_cache cache
    cache.tags = <uint64_t*>tags.data
    cache.num_sets, cache.ways = tags.extent[0], tags.extent[1]
    cdef const uint64_t* p = <const uint64_t*>_data(keys)
    cdef int64_t n = len(keys)
    with nogil:
        KERNELS.cache_locate(&cache, p, n, <int32_t*>out.data, NULL)


def refuse_overlap(list written, list read):
    """Raise ValueError where the memory of a written view meets that of any other.

    All are C-contiguous; `read` may hold None.
    """
    cdef View v
    cdef uintptr_t first
    spans = []
    for changes, views in ((True, written), (False, read)):
        for v in views:
            if v is not None and v.size > 0:
                first = <uintptr_t>v.data
                spans.append(
                    (first, first + v.size * (v.type.bits * v.type.lanes // 8), changes, v.name))
    spans.sort()
    furthest = furthest_written = (0, "")  # the ends so far
    for begin, end, changes, name in spans:
        other = furthest if changes else furthest_written
        if begin < other[0]:
            one, two = (name, other[1]) if changes else (other[1], name)
            raise ValueError(f"{one}: is written to and shares memory with {two}; copy one first")
        furthest = max(furthest, (end, name))
        if changes:
            furthest_written = max(furthest_written, (end, name))
