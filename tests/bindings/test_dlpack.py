"""Arrays of any library: what is let in, what is refused and how."""

import array
import ctypes
import gc
import re
import weakref
from typing import Any

import numpy as np
import pytest

from mpembed._bindings.dlpack import view
from mpembed._bindings.view import DTYPES, View, require

F32 = DTYPES["float32"]


def refuse(obj: Any, error: type[Exception], text: str) -> None:
    """Check that an object is refused by an error that names the argument."""
    with pytest.raises(error, match=f"^arg: .*{re.escape(text)}"):
        view(obj, "arg")


@pytest.mark.parametrize(
    "name", ["float32", "float16", "float64", "int8", "int16", "int32", "int64", "uint8", "uint16",
             "uint32", "uint64", "bool"],
)  # fmt: skip
def test_numpy_dtypes(name: str) -> None:
    a = np.zeros((3, 4), name)
    v = view(a, "arg")
    assert (v.dtype, v.shape, v.strides, v.size) == (name, (3, 4), (4, 1), 12)
    assert v.address == a.ctypes.data
    assert v.writable
    assert v.contiguous
    require(v, DTYPES[name], 2)
    with pytest.raises(TypeError, match=f"got {name}$"):
        require(v, sum(DTYPES.values()) - DTYPES[name], 2)


def test_numpy_read_only_is_an_input_but_no_output() -> None:
    a = np.zeros(3, np.float32)
    a.flags.writeable = False
    v = view(a, "arg")
    require(v, F32)
    with pytest.raises(BufferError, match="^arg: is written to, but is read-only"):
        require(v, F32, writable=True)


@pytest.mark.parametrize("shape", [(), (0,), (0, 3), (3, 0), (1, 1), (1,) * 8])
def test_numpy_odd_shapes(shape: tuple[int, ...]) -> None:
    a = np.zeros(shape, np.float32)
    v = view(a, "arg")
    assert v.contiguous
    assert (v.shape, v.size) == (shape, a.size)
    require(v, F32, len(shape), shape)


@pytest.mark.parametrize(
    ("cut", "strides", "contiguous"),
    [
        (np.s_[:, :2], (4, 1), False),
        (np.s_[::-1], (-4, 1), False),
        (np.s_[:, ::2], (4, 2), False),
        (np.s_[1:], (4, 1), True),
        (np.s_[1:2, :2], (2, 1), True),  # a dimension of length 1 has no stride of its own
        (np.s_[1:1, ::-1], (4, 1), True),
    ],
)
def test_numpy_strides(cut: Any, strides: tuple[int, ...], contiguous: bool) -> None:
    a = np.arange(12, dtype=np.float32).reshape(3, 4)[cut]
    v = view(a, "arg")
    assert v.strides == strides
    assert v.contiguous == contiguous == a.flags.c_contiguous
    require(v, F32, contiguous=False)
    if not contiguous:
        with pytest.raises(ValueError, match="^arg: must be C-contiguous, but has shape"):
            require(v, F32)


def test_numpy_refused() -> None:
    records = np.zeros(3, [("a", "f4"), ("b", "f8")])
    refuse(records, TypeError, "is not supported")
    refuse(records["b"], ValueError, "stride 12 is no multiple of its 8 byte items")
    refuse(np.zeros(3, np.dtype("f4").newbyteorder()), TypeError, "byte order")
    for dtype in (object, "M8[s]", "m8[s]", "S4", "U4", np.longdouble):
        refuse(np.zeros(3, dtype), TypeError, "is not supported")
    refuse(np.ma.array([1.0], mask=[True]), TypeError, "masked arrays")
    refuse(np.zeros((1,) * 9), ValueError, "has 9 dimensions, at most 8")
    misaligned = np.frombuffer(bytearray(20), np.uint8)[1:17].view(np.float32)
    refuse(misaligned, BufferError, "not aligned to 4 bytes")


def test_numpy_subclass_and_lifetime() -> None:
    class Sub(np.ndarray[Any, Any]):
        pass

    a = np.zeros(4, np.float32).view(Sub)
    alive = weakref.ref(a)
    v = view(a, "arg")
    assert v.address == a.ctypes.data
    del a
    gc.collect()
    assert alive() is not None
    del v
    gc.collect()
    assert alive() is None


@pytest.mark.parametrize(
    "obj",
    [None, [1.0], (1.0,), 1, 1.0, "a", b"abc", {}, object(), np.float32(1), np.ndarray,
     array.array("f", [1.0]), memoryview(b"abc"), lambda: None],
)  # fmt: skip
def test_no_array(obj: Any) -> None:
    refuse(obj, TypeError, f"got {type(obj).__name__}")


def test_require_shape() -> None:
    v = view(np.zeros((3, 4), np.float32), "arg")
    require(v, F32, 2, (3, -1))
    cases: list[tuple[int, tuple[int, ...] | None, str]] = [
        (1, None, "expected 1 dimensions, got shape (3, 4)"),
        (-1, (3,), "expected 1 dimensions"),
        (2, (-1, 5), "expected shape (any, 5), got (3, 4)"),
    ]
    for ndim, shape, text in cases:
        with pytest.raises(ValueError, match=re.escape(f"arg: {text}")):
            require(v, F32, ndim, shape)
    with pytest.raises(ValueError, match=r"^arg: expected shape \(5,\), got \(4,\)$"):
        require(view(np.zeros(4, np.float32), "arg"), F32, 1, (5,))
    with pytest.raises(TypeError, match=r"^arg: expected dtype float16 or int32, got float32$"):
        require(v, DTYPES["float16"] | DTYPES["int32"])
    with pytest.raises(TypeError, match="views are made by"):
        View()


# --- torch and JAX --------------------------------------------------------------------------------


@pytest.mark.torch
def test_torch_dtypes() -> None:
    torch = pytest.importorskip("torch")
    for name in DTYPES:
        t = torch.zeros(3, 4, dtype=getattr(torch, name))
        v = view(t, "arg")
        assert (v.dtype, v.shape, v.strides) == (name, (3, 4), (4, 1))
        assert v.address == t.data_ptr()
        require(v, DTYPES[name], 2, writable=True)
    for dtype in (torch.complex64, torch.float8_e4m3fn):
        v = view(torch.zeros(2, dtype=dtype), "arg")
        with pytest.raises(TypeError, match=f"got {str(dtype).removeprefix('torch.')}$"):
            require(v, sum(DTYPES.values()))


@pytest.mark.torch
def test_torch_layouts_and_lifetime() -> None:
    torch = pytest.importorskip("torch")
    t = torch.arange(12.0).reshape(3, 4)
    assert view(t.T, "arg").strides == (1, 4)
    assert not view(t.T, "arg").contiguous
    assert view(t[1:], "arg").address == t.data_ptr() + 16
    assert view(torch.zeros(0, 3), "arg").size == 0
    assert view(torch.tensor(1.0), "arg").shape == ()
    v = view(t, "arg")
    alive = weakref.ref(t)
    del t
    gc.collect()
    assert ctypes.c_float.from_address(v.address + 4).value == 1.0
    del v
    gc.collect()
    assert alive() is None


@pytest.mark.torch
def test_torch_refused() -> None:
    torch = pytest.importorskip("torch")
    refuse(torch.zeros(2, requires_grad=True), BufferError, "pass arg.detach()")
    refuse(torch.nn.Parameter(torch.zeros(2)), BufferError, "pass arg.detach()")
    refuse(torch.zeros(2, dtype=torch.complex64).conj(), BufferError, "conjugate bit")
    refuse(torch.zeros(2, dtype=torch.complex64).conj().imag, BufferError, "negative bit")
    refuse(torch.zeros(2, device="meta"), BufferError, "cannot be exported through DLPack")
    refuse(torch.eye(2).to_sparse(), BufferError, "cannot be exported through DLPack")
    refuse(torch.Tensor, TypeError, "expected an array")


def test_jax() -> None:
    jnp = pytest.importorskip("jax.numpy")
    for name in ("float32", "bfloat16", "int32", "uint8"):
        x = jnp.arange(6, dtype=name).reshape(2, 3)
        v = view(x, "arg")
        assert (v.dtype, v.shape, v.contiguous) == (name, (2, 3), True)
        require(v, DTYPES[name])
        # Newer releases of JAX say themselves that it is read-only.
        said = r"pass a NumPy array or a Py|but is read-only$"
        with pytest.raises(BufferError, match=rf"^arg: is written to.*({said})"):
            require(v, DTYPES[name], writable=True)


def test_ml_dtypes_bfloat16() -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    v = view(np.zeros(3, ml_dtypes.bfloat16), "arg")
    require(v, DTYPES["bfloat16"], writable=True)
    refuse(np.zeros(3, ml_dtypes.float8_e4m3fn), TypeError, "is not supported")
