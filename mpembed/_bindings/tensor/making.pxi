# How tensors are made and filled; part of tensor.pyx.


cdef Tensor new_tensor(Memory memory, tuple shape, object dtype, Stream written):
    cdef Tensor t = Tensor.__new__(Tensor)
    cdef int i
    if len(shape) > MAX_NDIM:
        raise ValueError(f"shape {shape} has {len(shape)} dimensions, at most {MAX_NDIM}")
    t.memory, t.data = memory, <char*>memory.data
    memory.written = written
    t.ndim = len(shape)
    for i in range(t.ndim):
        t.extent[i] = shape[i]
    t.type.code, t.type.bits, t.type.lanes = CODES[dtype.kind], 8 * dtype.itemsize, 1
    return t


def empty(Device device, shape, dtype, int placement):
    """Return a tensor in memory of its own, not initialised.

    `placement` is ``device.DEVICE`` or ``device.PINNED_HOST``.
    """
    dtype = np.dtype(dtype)
    nbytes = math.prod(shape) * dtype.itemsize
    if nbytes > INT64_MAX:
        raise MemoryError(f"shape {shape} of dtype {dtype} exceeds the address space")
    return new_tensor(allocate(device, nbytes, placement), tuple(shape), dtype, None)


def transient(Stream on, shape, dtype):
    """Return a tensor in memory of the stream's pool, not initialised.

    `dtype` may also be ``"bfloat16"``, which NumPy has not.
    """
    cdef Tensor made
    cdef bint bfloat = isinstance(dtype, str) and dtype == "bfloat16"
    dtype = np.dtype("uint16" if bfloat else dtype)
    nbytes = math.prod(shape) * dtype.itemsize
    made = new_tensor(borrow(on, nbytes), tuple(shape), dtype, on)
    if bfloat:
        made.type.code = kDLBfloat
    return made


cdef Tensor copied(Tensor source):
    """Return a copy in memory of the same kind, made behind what writes the source."""
    cdef Device device = source.memory.device
    cdef Stream on = source.memory.writer()
    cdef Tensor made
    cdef int64_t nbytes = source.nbytes
    if source.memory.placement == MPE_PLACEMENT_HOST:  # __dlpack_device__ said so
        made = empty(device, source.shape, source.dtype, MPE_PLACEMENT_HOST)
        made.type = source.type
        on.synchronize("waiting for the tensor")
        memcpy(made.data, source.data, nbytes)
        return made
    made = transient(on, source.shape, source.dtype)
    made.type = source.type
    device.check(
        launch(device.target, device.kernels.copy, made.data, source.data, nbytes, on.handle),
        "copying")
    return made


def from_view(View source, Stream on):
    """Return a tensor with the values of a C-contiguous array on this or another device."""
    cdef Tensor made
    cdef int64_t nbytes = source.size * (source.type.bits // 8)
    bits = np.dtype(f"u{source.type.bits // 8}")
    made = new_tensor(borrow(on, nbytes), source.shape, bits, on)
    made.type = source.type
    if nbytes:
        upload(on, made.data, source.data, nbytes)
    on.synchronize("copying")  # pinned host memory is read later
    return made


def fill(Tensor t, values, Stream on):
    """Write a NumPy array's values, or one value everywhere, and wait for it."""
    cdef int64_t done = 0, nbytes = t.nbytes
    cdef int64_t itemsize = t.type.bits // 8
    cdef cnp.ndarray array
    if isinstance(values, np.ndarray):
        array = np.ascontiguousarray(values)
        if array.nbytes != nbytes:
            raise ValueError(f"{array.nbytes} bytes do not fill {nbytes}")
        if nbytes:
            upload(on, t.data, cnp.PyArray_DATA(array), nbytes)
    elif values == 0:
        zero(t, on)
    else:
        array = np.full(min(nbytes, CHUNK) // itemsize, values, t.dtype)
        while done < nbytes:
            upload(on, t.data + done, cnp.PyArray_DATA(array), min(CHUNK, nbytes - done))
            done += CHUNK
    on.synchronize("filling")


cdef int zero(Tensor t, Stream on) except -1:
    cdef Device device = on.device
    cdef int64_t nbytes = t.nbytes
    if t.memory.placement == MPE_PLACEMENT_HOST:
        on.synchronize("filling")
        memset(t.data, 0, nbytes)
        return 0
    return device.check(
        launch(device.target, device.kernels.fill, t.data, 0, nbytes, on.handle), "filling")


def read_only(Tensor t, Stream written):
    """Return the same memory as a tensor that nobody may write, last written on a stream."""
    cdef Tensor made = Tensor.__new__(Tensor)
    made.memory, made.data, made.ndim, made.type = t.memory, t.data, t.ndim, t.type
    made.extent = t.extent
    made.read_only = True
    made.memory.written = written
    return made


def row(Tensor t, int64_t i):
    """Return row i of a tensor's first dimension, which shares its memory."""
    cdef Tensor made = Tensor.__new__(Tensor)
    made.memory, made.type, made.ndim = t.memory, t.type, t.ndim - 1
    for j in range(made.ndim):
        made.extent[j] = t.extent[j + 1]
    made.data = t.data + i * <int64_t>made.nbytes
    return made


def piece(Tensor t, int64_t begin, int64_t end):
    """Return elements [begin, end) of a tensor's first dimension, which share its memory."""
    cdef Tensor made = Tensor.__new__(Tensor)
    cdef int64_t each
    made.memory, made.type, made.ndim = t.memory, t.type, t.ndim
    made.extent = t.extent
    made.extent[0] = 1
    each = made.nbytes
    made.extent[0] = end - begin
    made.data = t.data + begin * each
    return made


def reshaped(Tensor t, shape, dtype):
    """Return the same memory with another shape and type of as many bytes."""
    cdef Stream written = t.memory.written
    cdef Tensor made = new_tensor(t.memory, tuple(shape), np.dtype(dtype), written)
    made.data, made.read_only = t.data, t.read_only
    return made
