# Stateless kernels; part of kernels.pyx.

def unstorable(View x, int64_t n, int64_t dim, int precision, Stream on):
    """Return (first row, number of rows) that a precision cannot store, or None.

    A device is waited for.
    """
    cdef mpe_error error
    cdef Memory found = borrow(on, sizeof(mpe_error))
    cdef Outcome outcome = launch(
        on.device.target, on.device.kernels.check_values, <const float*>x.data, n, dim, precision,
        on.handle, <mpe_error*>found.data)
    if outcome.status != MPE_ERR_VALUE:
        on.device.check(outcome, "checking values")
    download(on, &error, found.data, sizeof(mpe_error))
    return (error.position, error.count) if error.status == MPE_ERR_VALUE else None


def oversized_code(View codes, int bits, Stream on):
    """Return (first position, value) of a code that takes more bits, or None.

    A device is waited for.
    """
    cdef mpe_error error
    cdef Memory found = borrow(on, sizeof(mpe_error))
    cdef Outcome outcome = launch(
        on.device.target, on.device.kernels.check_codes, <const uint8_t*>codes.data, codes.size,
        bits, on.handle, <mpe_error*>found.data)
    if outcome.status != MPE_ERR_VALUE:
        on.device.check(outcome, "checking codes")
    download(on, &error, found.data, sizeof(mpe_error))
    return (error.position, error.value) if error.status == MPE_ERR_VALUE else None


def quantize(View x, int64_t n, int64_t dim, int precision, int rounding, uint64_t seed,
             uint64_t step, View rows, Stream on):
    on.device.check(
        launch(on.device.target, on.device.kernels.quantize, <const float*>x.data, n, dim,
               precision, rounding, seed, step, <uint8_t*>rows.data, on.handle),
        "quantize")


def dequantize(View rows, int64_t n, int64_t dim, int precision, View x, Stream on):
    on.device.check(
        launch(on.device.target, on.device.kernels.dequantize, <const uint8_t*>rows.data, n, dim,
               precision, <float*>x.data, on.handle),
        "dequantize")


def pack_codes(View codes, int64_t n, int64_t dim, int bits, View packed, Stream on):
    on.device.check(
        launch(on.device.target, on.device.kernels.pack_codes, <const uint8_t*>codes.data, n, dim,
               bits, <uint8_t*>packed.data, on.handle),
        "pack")


def unpack_codes(View packed, int64_t n, int64_t dim, int bits, View codes, Stream on):
    on.device.check(
        launch(on.device.target, on.device.kernels.unpack_codes, <const uint8_t*>packed.data, n,
               dim, bits, <uint8_t*>codes.data, on.handle),
        "unpack")


def stochastic_round(View x, int64_t n, int precision, uint64_t seed, uint64_t step, View out,
                     Stream on):
    on.device.check(
        launch(on.device.target, on.device.kernels.stochastic_round, <const float*>x.data, n,
               precision, seed, step, <uint16_t*>out.data, on.handle),
        "stochastic_round")


def unique_keys(Keys keys, uint64_t limit, View rows, View starts, View positions, Stream on):
    """Fill `rows` (ascending), `starts` and `positions`; return how many rows.

    Keys are below `limit`. A device is waited for.
    """
    cdef mpe_unique unique
    cdef int64_t count = 0, n = keys.n
    cdef Memory counted = borrow(on, sizeof(int64_t))
    cdef Memory own_starts = None
    unique.count = <int64_t*>counted.data
    unique.rows, unique.starts = <uint64_t*>rows.data, <int64_t*>starts.data
    unique.positions = <int32_t*>positions.data
    if not on.device.synchronous:  # whose kernels read the starts again: not out of shared memory
        own_starts = borrow(on, (n + 1) * sizeof(int64_t))
        unique.starts = <int64_t*>own_starts.data
    on.device.check(
        launch(on.device.target, on.device.kernels.dedup, keys.keys, n, limit, &unique, on.handle),
        "unique_rows")
    download(on, &count, counted.data, sizeof(int64_t))
    if own_starts is not None:
        on.device.check(
            launch(on.device.target, on.device.kernels.copy, starts.data, own_starts.data,
                   (count + 1) * <int64_t>sizeof(int64_t), on.handle),
            "unique_rows")
    return count


def cache_lookup(View tags, Keys keys, View out, Stream on):
    """Slots of keys in a (num_sets, ways) tag array."""
    cdef mpe_cache cache
    cache.tags = <uint64_t*>tags.data
    cache.num_sets, cache.ways = tags.extent[0], tags.extent[1]
    on.device.check(
        launch(on.device.target, on.device.kernels.cache_locate, &cache, keys.keys, keys.n,
               <int32_t*>out.data, on.handle),
        "cache_lookup")


def cache_sets(keys, int64_t num_sets):
    """The set of a cache that each of the host's keys (uint64, contiguous) belongs to."""
    cdef int64_t i, n = keys.size
    cdef const uint64_t* key = <const uint64_t*>cnp.PyArray_DATA(keys)
    sets = np.empty(n, np.int64)
    cdef int64_t* place = <int64_t*>cnp.PyArray_DATA(sets)
    with nogil:
        for i in range(n):
            place[i] = set_of(key[i], num_sets)
    return sets


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
