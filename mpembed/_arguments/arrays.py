"""Single arrays of a call: where they lie, what they hold, and where its result goes."""

from typing import Any

import numpy as np

from mpembed import devices, registry
from mpembed._arguments import captures
from mpembed._arguments.scalars import integer
from mpembed._bindings import array_ops, kernels
from mpembed._bindings.contract import MAX_SEED, MAX_STEP
from mpembed._bindings.device import Stream
from mpembed._bindings.dlpack import device_pair, refuse_moved, view
from mpembed._bindings.view import DTYPES, View, require
from mpembed.config import TableConfig

FLOAT = DTYPES["float32"]
#: The element types of outputs and their gradients, by the names of their formats.
OUTPUT_DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
OUTPUT = sum(DTYPES[OUTPUT_DTYPES[name]] for name in registry.OUTPUT_FORMATS)
INDEX = DTYPES["int32"] | DTYPES["int64"]
UNSIGNED_INDEX = DTYPES["uint32"] | DTYPES["uint64"]
BYTE = DTYPES["uint8"]


def begin(values: Any, name: str, stream: Any, refuse: captures.Refuse) -> tuple[Stream, View]:
    """Return where a stateless call happens, which its first array decides, and that array.

    `refuse` is called with the stream if the call would be captured, before anything is queued.
    """
    try:
        device = devices.of_dlpack(*device_pair(values, name))
    except (RuntimeError, ValueError) as error:
        raise BufferError(f"{name}: is on a CUDA device, but {error}") from None
    on = device.stream(stream)
    if on.capture != 0:
        refuse(on)
    return on, view(values, name, on)


def draw_key(seed: int, step: int) -> tuple[int, int]:
    """Return the checked key of random bits."""
    return integer("seed", seed, 0, MAX_SEED), integer("step", step, 0, MAX_STEP)


def storable(
    x: View, rows: int, dim: int, precision: str, name: str, on: Stream, unit: str = "row"
) -> None:
    """Raise ValueError if a precision cannot store a row; a device is waited for."""
    found = kernels.unstorable(x, rows, dim, registry.FORMATS[precision], on)
    if found is not None:
        raise ValueError(
            f"{name}: {unit} {found[0]} is not finite or exceeds the range of {precision}; "
            f"{found[1]} such {unit}s"
        )


def refuse_values(source: View) -> None:
    """Raise TypeError where packed bytes are expected and an array is of another type."""
    if source.dtype != "uint8":
        raise TypeError(
            f"{source.name}: expected dtype uint8, got {source.dtype}; pass the bytes of the rows: "
            "a uint8 view of shape (E, row_bytes), with dim="
        )


def packed_rows(source: View, precision: str, dim: int) -> View:
    """Check that an array holds rows of a precision."""
    refuse_values(source)
    require(source, BYTE, 2)
    width = registry.row_bytes(precision, dim)
    if source.shape[1] != width:
        raise ValueError(
            f"rows must have {width} bytes a row ({precision}, dim {dim}), got {source.shape[1]}"
        )
    return source


def require_index(given: View, *, unsigned: bool = False) -> None:
    """Check that an array has one dimension and the type of indices, with a way out in its error.

    `unsigned`: whether the host may have unsigned ones.
    """
    accepted = INDEX | UNSIGNED_INDEX if unsigned and given.on_host else INDEX
    try:
        require(given, accepted, 1)
    except TypeError as error:
        raise TypeError(
            f"{error}; convert it, a PyTorch tensor with .long(), a NumPy array with "
            ".astype('int64')"
        ) from None


def signed_view(given: View, on: Stream) -> tuple[View, bool]:
    """Return the view of indices as int32 or int64, and whether uint64 are read as int64.

    In the host's memory indices may be unsigned: uint32 are copied. uint64 are not: 2^63 and more
    become negative, and so out of range.
    """
    try:
        require(given, INDEX, 1)
        return given, False
    except TypeError:
        require_index(given, unsigned=True)
    array, copied = np.asarray(given), given.dtype == "uint32"
    array = array.astype(np.int64) if copied else array.view(np.int64)
    return view(array, given.name, on), not copied


def row_ids(config: TableConfig, ids: View, on: Stream) -> Any:
    """Return checked row ids as an int64 array of the host; a device is waited for."""
    require_index(ids, unsigned=True)
    array = kernels.host_copy(ids, on, always=True)  # the caller's may change
    bad = np.flatnonzero((array < 0) | (array >= config.num_embeddings))
    if bad.size:
        raise IndexError(
            f"table {config.name!r} (num_embeddings={config.num_embeddings}): id "
            f"{array[bad[0]]} at position {bad[0]} is out of range; {bad.size} such ids"
        )
    return array.astype(np.int64, copy=False)


def unique_row_ids(config: TableConfig, ids: View, on: Stream) -> Any:
    """Return row ids as `row_ids` does; ValueError if one comes twice."""
    checked = row_ids(config, ids, on)
    if len(np.unique(checked)) != len(checked):
        raise ValueError("ids has duplicates")
    return checked


def result_view(
    out: Any,
    shape: tuple[int, ...],
    dtype: Any,
    kinds: int,
    on: Stream,
    *read: View | None,
    name: str = "out",
    exported: View | None = None,
) -> tuple[Any, View]:
    """Return `out` or a new array, and its view, which may not overlap what is read.

    `exported` is the view of `out` if it was taken before. It is the last argument to be exported:
    what is read must still be where it was.
    """
    result = array_ops.result(shape, dtype, on) if out is None else out
    checked = view(result, name, on) if exported is None else exported
    require(checked, kinds, len(shape), shape, writable=True)
    if out is not None:
        refuse_moved([checked, *read])
        kernels.refuse_overlap([checked], list(read))
    return result, checked
