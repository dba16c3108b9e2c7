"""Arrays on huge pages: size, alignment, accounting, failure."""

import gc
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpembed._bindings import memory

Make = Callable[..., np.ndarray[Any, Any]]
BOTH = pytest.mark.parametrize("make", [memory.empty, memory.zeros])
MIB = 1 << 20


@BOTH
@pytest.mark.parametrize(
    ("shape", "dtype"),
    [(5, "u1"), ((3, 4), "f4"), ((), "f8"), (0, "f4"), ((0, 7), "i8"), ((7, 0), "i8"),
     ((MIB,), "u1"), ((MIB + 1,), "u1"), ((1000, 777), "f4"), ([2, 3], "bool"),
     ((np.int64(2), 3), np.dtype([("a", "f4"), ("b", "u1")]))],
)  # fmt: skip
def test_arrays(make: Make, shape: Any, dtype: Any) -> None:
    before = memory.allocated_bytes()
    a = make(shape, dtype)
    assert a.shape == np.empty(shape, dtype).shape
    assert a.dtype == np.dtype(dtype)
    assert a.flags.c_contiguous
    assert a.flags.writeable
    assert type(a) is np.ndarray
    assert a.ctypes.data % (2 * MIB if a.nbytes >= MIB else 64) == 0
    taken = memory.allocated_bytes() - before
    assert max(a.nbytes, 1) <= taken < max(a.nbytes, 1) + (65536 if a.nbytes >= MIB else 64)
    if make is memory.zeros:
        assert not a.view(np.uint8).any() if a.ndim else a == 0
    a.fill(1) if a.dtype.names is None else None  # all of it is there
    part = a[...]
    del a
    assert memory.allocated_bytes() - before == taken  # a view keeps it
    del part
    gc.collect()
    assert memory.allocated_bytes() == before


def test_zeros_after_use() -> None:
    for n in (100, 3 * MIB):
        for _ in range(20):
            a = memory.zeros(n, "u1")
            assert not a.any()
            a.fill(255)
            del a


@BOTH
def test_refused(make: Make) -> None:
    before = memory.allocated_bytes()
    with pytest.raises(ValueError, match=r"shape \(3, -1\) has a negative dimension"):
        make((3, -1), "f4")
    with pytest.raises(ValueError, match="at most 32"):
        make((1,) * 33, "f4")
    for shape in [(2**62,), (2**31, 2**31, 2**31), (0, 2**61, 4), (2**200,)]:
        with pytest.raises(MemoryError, match="exceeds the address space"):
            make(shape, "f4")
    with pytest.raises(MemoryError, match=r"cannot allocate 1125899906842624 bytes .*float32"):
        make((2**40, 256), "f4")
    for dtype in (object, "S0", np.dtype([("a", object)])):
        with pytest.raises(TypeError, match="no fixed-size plain elements"):
            make(3, dtype)
    with pytest.raises(TypeError, match="itself an array"):
        make(3, np.dtype(("f4", (2,))))
    for odd in (1.5, None, "ab", [[1]]):
        with pytest.raises(TypeError):
            make(odd, "f4")
    assert memory.allocated_bytes() == before


def test_tracemalloc_sees_them() -> None:
    tracemalloc.start()
    try:
        a = memory.empty(8 * MIB, "u1")
        assert tracemalloc.get_traced_memory()[0] >= 8 * MIB
        del a
        assert tracemalloc.get_traced_memory()[0] < MIB
    finally:
        tracemalloc.stop()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_goes_back() -> None:
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    start = resident()
    for _ in range(10):
        a = memory.empty(64 * MIB, "u1")
        a.fill(1)
        assert resident() - start > 60 * MIB
        del a
        gc.collect()
        assert resident() - start < 30 * MIB


@given(st.lists(st.integers(-2, 2**65), max_size=5), st.sampled_from(["u1", "f4", "V7"]))
def test_any_shape(shape: list[int], dtype: str) -> None:
    if 2**22 < np.prod([n or 1 for n in shape], dtype=object) < 2**46 and min(shape) >= 0:
        return  # might really be allocated
    before = memory.allocated_bytes()
    try:
        a = memory.empty(shape, dtype)
    except (MemoryError, ValueError):
        pass
    else:
        assert a.shape == tuple(shape)
        del a
    assert memory.allocated_bytes() == before
