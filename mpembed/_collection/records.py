"""A table's rows and optimizer states in memory, and the logical arrays that others see of them.

A row lies beside its states of one value, in a record, so that an update touches one place. States
of a value an element lie beside each other in memory of their own: a forward does not need them,
and between the rows they would only spread what it reads. That layout is nobody else's business:
what is saved, compared or handed out are arrays of rows and of each state, contiguous and by name.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mpembed._bindings import array_ops
from mpembed._bindings.array_ops import Array
from mpembed._bindings.device import Device, Stream
from mpembed._bindings.tensor import Tensor

_CHUNK = 1 << 25  # bytes that pass through the host's memory at a time
_MAX_ALIGNMENT = 16  # of the widest loads
_MAX_PADDING = 0.01  # of a record


@dataclass(frozen=True)
class Field:
    """One of the values of a record: a row, or one of its states.

    Attributes
    ----------
    name : str
        ``"rows"``, or the state's.
    shape : tuple of int
        Of one row's values.
    dtype : numpy.dtype
        Of the values.
    initial : number
        What they start with.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    initial: Any = 0

    @property
    def nbytes(self) -> int:
        """Bytes of one row's values."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def alignment(self) -> int:
        """What the address of vector loads has to be a multiple of."""
        return math.gcd(self.nbytes, _MAX_ALIGNMENT)


class StoredArray:
    """A logical array: elements of its first dimension are read and written in pieces.

    Parameters
    ----------
    memory : Array
        The array; or bytes (E, stride), of which each row's values begin at `offset`.
    shape : tuple of int
        Of the logical array.
    dtype : numpy.dtype
        Of its elements.
    offset : int
        See `memory`.
    """

    def __init__(
        self, memory: Array, shape: tuple[int, ...], dtype: np.dtype[Any], offset: int = 0
    ) -> None:
        self.memory, self.shape, self.dtype, self.offset = memory, shape, dtype, offset
        self.nbytes = math.prod(shape) * dtype.itemsize
        self._row_bytes = math.prod(shape[1:]) * dtype.itemsize
        self.dense = memory.nbytes == self.nbytes

    @classmethod
    def of(cls, array: Array) -> "StoredArray":
        """Return the logical array that a whole array is."""
        return cls(array, tuple(array.shape), np.dtype(array.dtype))

    def pieces(self) -> Iterator[tuple[int, int]]:
        """Yield the bounds of pieces of some tens of megabytes."""
        count = self.shape[0]
        each = max(1, _CHUNK // max(1, self.memory.nbytes // max(1, count)))
        for begin in range(0, count, each):
            yield begin, min(begin + each, count)

    def _columns(self, records: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return this array's bytes of some records."""
        return records[:, self.offset : self.offset + self._row_bytes]

    def read(self, begin: int, end: int, on: Stream) -> npt.NDArray[Any]:
        """Return elements [begin, end) in the host's memory, contiguous and perhaps not copied."""
        memory = array_ops.piece(self.memory, begin, end)
        values: npt.NDArray[Any] = array_ops.host(array_ops.read_only(memory, on))
        if not self.dense:
            values = np.ascontiguousarray(self._columns(values))
        return values.reshape(-1).view(self.dtype).reshape(end - begin, *self.shape[1:])

    def target(self, begin: int, end: int) -> npt.NDArray[Any]:
        """Return memory of the host for elements [begin, end), to be given to `write`.

        It is the array itself where that is possible.
        """
        if self.dense and not isinstance(self.memory, Tensor):
            place: npt.NDArray[Any] = array_ops.piece(self.memory, begin, end)
            return place.reshape(-1).view(self.dtype).reshape(end - begin, *self.shape[1:])
        return np.empty((end - begin, *self.shape[1:]), self.dtype)

    def write(self, begin: int, values: npt.NDArray[Any], on: Stream) -> None:
        """Set elements from `begin` on."""
        memory = array_ops.piece(self.memory, begin, begin + len(values))
        if values.size and array_ops.address(memory) == array_ops.address(values):
            return  # of `target`
        data = np.ascontiguousarray(values, self.dtype)
        if self.dense:
            data = data.reshape(-1).view(memory.dtype).reshape(memory.shape)
            array_ops.assign(memory, data, on)
            return
        held = memory
        if isinstance(memory, Tensor):
            held = array_ops.host(array_ops.read_only(memory, on))
        self._columns(held)[...] = data.reshape(len(values), -1).view(np.uint8)
        if held is not memory:
            array_ops.assign(memory, held, on)

    def fill(self, value: Any, on: Stream) -> None:
        """Set every element to one value."""
        for begin, end in self.pieces():
            self.write(begin, np.full((end - begin, *self.shape[1:]), value, self.dtype), on)

    def flattened(self, leading: int) -> "StoredArray":
        """Return the same with its first dimensions as one; rows and columns in memory stay."""
        count = math.prod(self.shape[:leading])
        stride = self.memory.nbytes // max(1, count)
        memory = array_ops.reshaped(self.memory, (count, stride), np.uint8)
        return StoredArray(memory, (count, *self.shape[leading:]), self.dtype, self.offset)

    def gather(self, ids: npt.NDArray[np.int64], on: Stream) -> npt.NDArray[Any]:
        """Return a copy of some elements in the host's memory, contiguous."""
        shape = (len(ids), *self.shape[1:])
        if not isinstance(self.memory, Tensor):
            values = self._opaque(np.asarray(self.memory))[ids]
            return values.view(self.dtype).reshape(shape)
        result = np.empty(shape, self.dtype)
        for begin, end, here in self._spans_of(ids):
            result[here] = self.read(begin, end, on)[ids[here] - begin]
        return result

    def scatter(self, ids: npt.NDArray[np.int64], values: npt.NDArray[Any], on: Stream) -> None:
        """Set some elements, none of them twice; a device is waited for."""
        if not isinstance(self.memory, Tensor):
            data = np.ascontiguousarray(values, self.dtype).reshape(-1).view(f"V{self._row_bytes}")
            self._opaque(np.asarray(self.memory))[ids] = data
            return
        for begin, end, here in self._spans_of(ids):
            held = self.read(begin, end, on).copy()
            held[ids[here] - begin] = values[here]
            self.write(begin, held, on)

    def _opaque(self, memory: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return the elements in memory, each as one opaque value, which is fast to move."""
        return self._in_place(memory, np.dtype(f"V{self._row_bytes}"), ())

    def _in_place(
        self, memory: npt.NDArray[Any], kind: np.dtype[Any], shape: tuple[int, ...]
    ) -> npt.NDArray[Any]:
        """Return the elements where they lie in memory, each as values of a kind and shape."""
        count = self.shape[0]
        if count == 0:
            return np.empty((0, *shape), kind)
        data, stride = memory.reshape(-1).view(np.uint8).data, memory.nbytes // count
        inner = np.empty(shape, kind).strides
        return np.ndarray((count, *shape), kind, data, self.offset, (stride, *inner))

    def strided(self) -> npt.NDArray[Any] | None:
        """Return all elements where they lie in the host's memory, with gaps between rows.

        None on a device, and where records leave them unaligned.
        """
        if isinstance(self.memory, Tensor):
            return None
        memory, size = np.asarray(self.memory), self.dtype.itemsize
        stride = memory.nbytes // max(1, self.shape[0])
        if stride % size or (memory.ctypes.data + self.offset) % size:
            return None
        return self._in_place(memory, self.dtype, self.shape[1:])

    def _spans_of(
        self, ids: npt.NDArray[np.int64]
    ) -> Iterator[tuple[int, int, npt.NDArray[np.int64]]]:
        """Yield spans of at most a piece that these elements lie in, and which of them each has."""
        for begin, end in self.pieces():
            here = np.flatnonzero((ids >= begin) & (ids < end))
            if here.size:
                yield int(ids[here].min()), int(ids[here].max()) + 1, here

    def whole(self, on: Stream) -> npt.NDArray[Any]:
        """Return all elements in the host's memory, contiguous and perhaps not copied."""
        if self.dense:
            return self.read(0, self.shape[0], on)
        result = np.empty(self.shape, self.dtype)
        for begin, end in self.pieces():
            result[begin:end] = self.read(begin, end, on)
        return result

    def shared(self, on: Stream) -> npt.NDArray[Any]:
        """Return all elements in the host's memory: the array itself where that is possible."""
        if self.dense and not isinstance(self.memory, Tensor):
            return self.target(0, self.shape[0])
        return self.whole(on)


class Records:
    """The memory of one table: two records a row at most, or an array a field.

    Parameters
    ----------
    count : int
        Rows.
    fields : sequence of Field
        The row, then the optimizer's states in its order.
    device : Device
        Where the memory is.
    host : bool
        On a device: whether it is the host's memory, pinned.
    """

    def __init__(self, count: int, fields: Sequence[Field], device: Device, *, host: bool) -> None:
        self.fields = tuple(fields)
        self.count = count
        self._blocks = _blocks(fields)
        self._offsets = [0] * len(fields)
        self.buffers: list[Any] = [None] * len(fields)
        for block in self._blocks.values():
            together = _record([fields[i] for i in block], aligned=not device.synchronous)
            if together is None:
                for i in block:
                    self.buffers[i] = _zeros(device, count, fields[i].nbytes, host=host)
                continue
            stride, offsets = together
            buffer = _zeros(device, count, stride, host=host)
            for i, offset in zip(block, offsets, strict=True):
                self.buffers[i], self._offsets[i] = buffer, offset
        on = device.stream(None)
        for field, stored in zip(self.fields, self.arrays(), strict=True):
            if field.initial != 0:
                stored.fill(field.initial, on)

    def arrays(self) -> list[StoredArray]:
        """Return each field as a logical array."""
        return [
            StoredArray(buffer, (self.count, *field.shape), field.dtype, offset)
            for field, buffer, offset in zip(self.fields, self.buffers, self._offsets, strict=True)
        ]

    def places(self) -> list[tuple[int, int]]:
        """Return the address of each field's row 0, and the bytes from a row to the next."""
        return [
            (array_ops.address(buffer) + offset, buffer.shape[1])
            for buffer, offset in zip(self.buffers, self._offsets, strict=True)
        ]

    def block_bytes(self) -> dict[str, int]:
        """Return each block's bytes a row, without padding, by the block's name."""
        return {
            name: sum(self.fields[i].nbytes for i in block) for name, block in self._blocks.items()
        }

    def packed(self, on: Stream) -> dict[str, npt.NDArray[np.uint8]]:
        """Return each block's bytes (E, bytes), without padding; on the CPU they are no copies."""
        each, widths = self.arrays(), self.block_bytes()
        found = {}
        for name, block in self._blocks.items():
            buffer = self.buffers[block[0]]
            if buffer.shape[1] == widths[name] and not isinstance(buffer, Tensor):
                found[name] = np.asarray(buffer)
                continue
            parts = []
            for i in block:
                values = each[i].whole(on).reshape(-1).view(np.uint8)
                parts.append(values.reshape(self.count, self.fields[i].nbytes))
            found[name] = np.concatenate(parts, axis=1)
        return found

    def unpacked(self, packed: Mapping[str, npt.NDArray[np.uint8]]) -> list[npt.NDArray[Any]]:
        """Return each field's values in what `packed` returned, at whatever addresses."""
        found: dict[int, npt.NDArray[Any]] = {}
        widths = self.block_bytes()
        for name, block in self._blocks.items():
            begin, memory = 0, packed[name].data if self.count > 0 else None
            for i in block:
                field = self.fields[i]
                strides = widths[name], *(field.dtype.itemsize for _ in field.shape)
                shape = self.count, *field.shape
                found[i] = np.ndarray(shape, field.dtype, memory, begin, strides)
                begin += field.nbytes
        return [found[i] for i in range(len(self.fields))]

    def memory(self) -> list[Array]:
        """Return the arrays that are allocated, each once."""
        return list({id(buffer): buffer for buffer in self.buffers}.values())

    @property
    def nbytes(self) -> int:
        """Bytes of memory."""
        return sum(buffer.nbytes for buffer in self.memory())


def record_bytes(fields: Sequence[Field], *, aligned: bool) -> int:
    """Return the bytes that a row and its states take in the memory of `Records`.

    Padding is counted. `aligned`: on a device, whose kernels load vectors.
    """
    total = 0
    for block in _blocks(fields).values():
        chosen = [fields[i] for i in block]
        together = _record(chosen, aligned=aligned)
        total += sum(field.nbytes for field in chosen) if together is None else together[0]
    return total


def _zeros(device: Device, count: int, width: int, *, host: bool) -> Array:
    return array_ops.full(device, (count, width), np.uint8, 0, host=host)


def _blocks(fields: Sequence[Field]) -> dict[str, list[int]]:
    """Return which fields are to lie side by side, by their numbers; each block has a name."""
    beside = [i for i, field in enumerate(fields) if i == 0 or field.shape == ()]
    apart = [i for i in range(len(fields)) if i not in beside]
    return {"records": beside, "states": apart} if apart else {"records": beside}


def _record(fields: Sequence[Field], *, aligned: bool) -> tuple[int, list[int]] | None:
    """Return the bytes from a record to the next and where each field begins.

    None where padding would take too much: fields that have to be aligned lie apart then.
    """
    offsets, end = [], 0
    for field in fields:
        step = field.alignment if aligned else 1
        begin = -(-end // step) * step
        offsets.append(begin)
        end = begin + field.nbytes
    step = max(field.alignment for field in fields) if aligned else 1
    stride = -(-end // step) * step
    used = sum(field.nbytes for field in fields)
    return None if stride - used > _MAX_PADDING * used else (stride, offsets)
