"""Single arrays of a call: where they lie, what they hold, and where its result goes."""

from typing import Any

import numpy as np

from mpembed import devices, registry
from mpembed._arguments import captures
from mpembed._arguments.scalars import integer
from mpembed._bindings import array_ops, kernels
from mpembed._bindings.contract import MAX_SEED, MAX_STEP
from mpembed._bindings.device import Stream
from mpembed._bindings.dlpack import device_pair, view
from mpembed._bindings.view import DTYPES, View, require
from mpembed.config import TableConfig

FLOAT = DTYPES["float32"]
INDEX = DTYPES["int32"] | DTYPES["int64"]
BYTE = DTYPES["uint8"]


def begin(values: Any, name: str, stream: Any, refuse: captures.Refuse) -> tuple[Stream, View]:
    """Return where a stateless call happens, which its first array decides, and that array.

    `refuse` is called with the stream if the call would be captured, before anything is queued.
    """
    try:
        device = devices.of_dlpack(*device_pair(values, name))
    except RuntimeError as error:
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


def row_ids(config: TableConfig, ids: Any, on: Stream) -> Any:
    """Return checked row ids as an int64 array of the host; a device is waited for."""
    checked = view(ids, "ids", on)
    require(checked, INDEX, 1)
    array = kernels.host_copy(checked, on).astype(np.int64)
    bad = np.flatnonzero((array < 0) | (array >= config.num_embeddings))
    if bad.size:
        raise IndexError(
            f"table {config.name!r} (num_embeddings={config.num_embeddings}): id "
            f"{array[bad[0]]} at position {bad[0]} is out of range; {bad.size} such ids"
        )
    return array


def result_view(
    out: Any,
    shape: tuple[int, ...],
    dtype: Any,
    kinds: int,
    on: Stream,
    *read: View | None,
    name: str = "out",
) -> tuple[Any, View]:
    """Return `out` or a new array, and its view, which may not overlap what is read."""
    result = array_ops.result(shape, dtype, on) if out is None else out
    checked = view(result, name, on)
    require(checked, kinds, len(shape), shape, writable=True)
    if out is not None:
        kernels.refuse_overlap([checked], list(read))
    return result, checked
