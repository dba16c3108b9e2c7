"""What kernels see of an array: where its memory is, and what is known of it."""

from libc.stdint cimport INT64_MAX, uint8_t, uint64_t, uintptr_t

cimport cython
cimport numpy as cnp

from mpembed._bindings.dlpack_c cimport (
    kDLBfloat, kDLBool, kDLComplex, kDLCPU, kDLCUDAHost, kDLFloat, kDLInt, kDLROCMHost, kDLUInt)

cnp.import_array()

cdef dict KINDS = {
    "float32": F32, "float16": F16, "bfloat16": BF16, "float64": F64, "int8": I8, "int16": I16,
    "int32": I32, "int64": I64, "uint8": U8, "uint16": U16, "uint32": U32, "uint64": U64,
    "bool": BOOL,
}
DTYPES = dict(KINDS)  # what `require` takes, for callers in Python

cdef dict CODES = {
    kDLInt: "int", kDLUInt: "uint", kDLFloat: "float", kDLBfloat: "bfloat", kDLComplex: "complex",
}

cdef dict FLOAT8 = {
    7: "e3m4", 8: "e4m3", 9: "e4m3b11fnuz", 10: "e4m3fn", 11: "e4m3fnuz", 12: "e5m2",
    13: "e5m2fnuz", 14: "e8m0fnu",
}


cdef unsigned int kind_of(uint8_t code, uint8_t bits) noexcept:
    if code == kDLFloat:
        return F32 if bits == 32 else F16 if bits == 16 else F64 if bits == 64 else 0
    if code == kDLInt:
        return (I64 if bits == 64 else I32 if bits == 32 else I8 if bits == 8
                else I16 if bits == 16 else 0)
    if code == kDLUInt:
        return (U8 if bits == 8 else U32 if bits == 32 else U64 if bits == 64
                else U16 if bits == 16 else 0)
    if code == kDLBfloat and bits == 16:
        return BF16
    if code == kDLBool and bits == 8:
        return BOOL
    return 0


@cython.freelist(16)
cdef class View:

    def __init__(self):
        raise TypeError("views are made by view()")

    def __dealloc__(self):
        if self.versioned != NULL and self.versioned.deleter != NULL:
            self.versioned.deleter(self.versioned)
        if self.legacy != NULL and self.legacy.deleter != NULL:
            self.legacy.deleter(self.legacy)

    @property
    def shape(self):
        """Lengths of the dimensions."""
        return tuple([self.extent[i] for i in range(self.ndim)])

    @property
    def strides(self):
        """Steps in elements."""
        return tuple([self.stride[i] for i in range(self.ndim)])

    @property
    def dtype(self):
        """Name of the element type."""
        return dtype_name(self)

    @property
    def nbytes(self):
        """Bytes of all elements."""
        return self.size * (self.type.bits // 8)

    @property
    def address(self):
        """Address of the first element."""
        return <uintptr_t>self.data

    @property
    def on_host(self):
        """Whether the host's own code may read the memory."""
        return reads_on_host(self.device.device_type)

    @property
    def __array_interface__(self):
        """The same memory as a NumPy array (native integers and floats only)."""
        cdef int64_t itemsize = self.type.bits // 8
        letter = "b" if self.kind == BOOL else {kDLInt: "i", kDLUInt: "u", kDLFloat: "f"}.get(
            self.type.code)
        if not reads_on_host(self.device.device_type):
            raise AttributeError(f"{self.name}: is not in the host's memory")
        if self.kind == 0 or letter is None:
            raise AttributeError(f"{self.name}: NumPy has no {self.dtype}")
        empty = self.data == NULL
        return {
            "version": 3,
            "shape": self.shape,
            "typestr": f"={letter}{itemsize}",
            "data": (0 if empty else <uintptr_t>self.data, not self.writable),
            "strides": None if self.contiguous else tuple(
                [self.stride[i] * itemsize for i in range(self.ndim)]),
        }

    def __repr__(self):
        return f"View({self.name!r}, shape={self.shape}, dtype={self.dtype})"


cdef bint reads_on_host(int64_t device_type) noexcept:
    return device_type == kDLCPU or device_type == kDLCUDAHost or device_type == kDLROCMHost


cdef str dtype_name(View v):
    if v.type.code == kDLBool and v.type.bits == 8:
        name = "bool"
    elif v.type.code in FLOAT8:
        name = f"float8_{FLOAT8[v.type.code]}"
    else:
        name = f"{CODES.get(v.type.code, f'type{v.type.code}_')}{v.type.bits}"
    return name if v.type.lanes == 1 else f"{name}x{v.type.lanes}"


cdef str names_of(unsigned int dtypes):
    return " or ".join([name for name, bit in KINDS.items() if dtypes & <unsigned int>bit])


cdef int finish(View v) except -1:
    """Compute size, strides of short dimensions and contiguity; check the address."""
    cdef int64_t expected = 1
    cdef int64_t n
    cdef int i
    cdef uint64_t align
    v.kind = kind_of(v.type.code, v.type.bits) if v.type.lanes == 1 else 0
    v.size = 1
    for i in range(v.ndim):
        if v.extent[i] < 0:
            raise BufferError(f"{v.name}: dimension {i} is negative: {v.extent[i]}")
        if v.extent[i] == 0:
            v.size = 0
    v.contiguous = True
    for i in range(v.ndim - 1, -1, -1):
        n = v.extent[i]
        if v.size == 0 or n == 1:
            v.stride[i] = expected
        elif v.stride[i] != expected:
            v.contiguous = False
        if n > 1:
            if expected > INT64_MAX // 64 // n:  # 64: no element is longer
                raise BufferError(f"{v.name}: shape {v.shape} is too large")
            expected *= n
    if v.size == 0:
        return 0
    v.size = expected
    if v.data == NULL:
        raise BufferError(f"{v.name}: has elements but no memory")
    align = v.type.bits * v.type.lanes // (16 if v.type.code == kDLComplex else 8)
    if align > 1 and align & (align - 1) == 0 and <uintptr_t>v.data % align != 0:
        raise BufferError(
            f"{v.name}: its memory is not aligned to {align} bytes, as {dtype_name(v)} has to be")
    return 0


cdef int too_many_dimensions(str name, int64_t ndim) except -1:
    raise ValueError(f"{name}: has {ndim} dimensions, at most {MAX_NDIM} are possible")


cdef int numpy_type(View v, cnp.ndarray a) except -1:
    cdef cnp.dtype descr = <cnp.dtype>cnp.PyArray_DESCR(a)
    cdef int kind = descr.kind
    v.type.lanes = 1
    v.type.bits = <uint8_t>(8 * cnp.PyArray_ITEMSIZE(a)) if cnp.PyArray_ITEMSIZE(a) <= 16 else 0
    if kind == c"f" and cnp.PyArray_ITEMSIZE(a) <= 8:  # a longer one is the platform's own format
        v.type.code = <uint8_t>kDLFloat
    elif kind == c"i":
        v.type.code = <uint8_t>kDLInt
    elif kind == c"u":
        v.type.code = <uint8_t>kDLUInt
    elif kind == c"b":
        v.type.code = <uint8_t>kDLBool
    elif kind == c"c" and cnp.PyArray_ITEMSIZE(a) <= 16:
        v.type.code = <uint8_t>kDLComplex
    elif kind == c"V" and (<object>descr).type.__name__ == "bfloat16":
        v.type.code = <uint8_t>kDLBfloat  # ml_dtypes, which JAX brings along
    else:
        raise TypeError(f"{v.name}: NumPy dtype {descr} is not supported")
    if not cnp.PyArray_ISNOTSWAPPED(a):
        raise TypeError(f"{v.name}: NumPy dtype {descr} is in the other byte order; convert it")
    return 0


cdef View from_numpy(cnp.ndarray a, str name):
    cdef View v = View.__new__(View)
    cdef cnp.npy_intp* shape = cnp.PyArray_DIMS(a)
    cdef cnp.npy_intp* strides = cnp.PyArray_STRIDES(a)
    cdef int64_t itemsize = cnp.PyArray_ITEMSIZE(a)
    cdef int i
    v.name = name
    v.owner = a
    if cnp.PyArray_NDIM(a) > MAX_NDIM:
        too_many_dimensions(name, cnp.PyArray_NDIM(a))
    numpy_type(v, a)
    v.device.device_type = kDLCPU
    v.ndim = cnp.PyArray_NDIM(a)
    v.data = cnp.PyArray_DATA(a)
    v.writable = cnp.PyArray_ISWRITEABLE(a)
    for i in range(v.ndim):
        if shape[i] > 1 and strides[i] % itemsize != 0:
            raise ValueError(
                f"{name}: stride {strides[i]} is no multiple of its {itemsize} byte items")
        v.extent[i] = shape[i]
        v.stride[i] = strides[i] // itemsize
    finish(v)
    return v


cpdef int require(View v, unsigned int dtypes, int ndim=-1, tuple shape=None, bint contiguous=True,
                  bint writable=False) except -1:
    """Check that an array is what a kernel needs.

    Parameters
    ----------
    v : View
        The array.
    dtypes : int
        Accepted element types: a sum of values of `DTYPES`.
    ndim : int
        Number of dimensions; -1 for any.
    shape : tuple of int, optional
        Lengths of the dimensions; -1 for any.
    contiguous : bool
        Whether it must be C-contiguous.
    writable : bool
        Whether it is written to.

    Raises
    ------
    TypeError
        If the element type is another one.
    ValueError
        If the shape or the layout is.
    BufferError
        If it is to be written and cannot be.
    """
    cdef int i
    if v.kind & dtypes == 0:
        raise TypeError(f"{v.name}: expected dtype {names_of(dtypes)}, got {dtype_name(v)}")
    if ndim >= 0 and v.ndim != ndim:
        raise ValueError(f"{v.name}: expected {ndim} dimensions, got shape {v.shape}")
    if shape is not None:
        if v.ndim != len(shape):
            raise ValueError(f"{v.name}: expected {len(shape)} dimensions, got shape {v.shape}")
        for i in range(v.ndim):
            if shape[i] != -1 and v.extent[i] != <int64_t>shape[i]:
                expected = ", ".join(["any" if n == -1 else str(n) for n in shape])
                if v.ndim == 1:
                    expected += ","  # as the tuple that it is
                raise ValueError(f"{v.name}: expected shape ({expected}), got {v.shape}")
    if contiguous and not v.contiguous:
        raise ValueError(
            f"{v.name}: must be C-contiguous, but has shape {v.shape} and strides {v.strides}; "
            "copy it first")
    if writable and not v.writable:
        if v.legacy != NULL:
            raise BufferError(
                f"{v.name}: is written to, but its exporter speaks a DLPack older than 1.0, which "
                "cannot say that it is writable (a JAX array never is); pass a NumPy array or a "
                "PyTorch tensor")
        raise BufferError(f"{v.name}: is written to, but is read-only")
    return 0
