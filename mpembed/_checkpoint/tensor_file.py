"""Safetensors files in pieces: records would have to be copied whole for the library's functions.

A file is the length of its header (8 bytes, little endian), the header (JSON: each array's dtype,
shape and place, and ``__metadata__``), and the arrays one after the other.
"""

import json
import os
import zlib
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from mpembed._checkpoint.header import LENGTH_BYTES, header_bytes, parse_header

_MOST_AT_ONCE = 1 << 30  # some systems read no more than 2 GB
Arrays = dict[str, tuple[np.dtype[Any], tuple[int, ...]]]
#: Contiguous memory for the pieces of an array, and what is called when each has been read.
Places = Iterator[tuple[npt.NDArray[Any], Callable[[], None]]]


def type_name(dtype: np.dtype[Any]) -> str:
    """Return the name of an element type: kind and bits, such as ``"U8"``."""
    return f"{dtype.kind.upper()}{8 * dtype.itemsize}"


def raw(array: npt.NDArray[Any]) -> memoryview:
    """Return the bytes of a contiguous array."""
    return array.reshape(-1).view(np.uint8).data


def nothing() -> None:
    """Do nothing once a piece has been read."""


def one_place(values: npt.NDArray[Any], done: Callable[[], None] = nothing) -> Places:
    """Return the only place of an array that is read whole."""
    return iter([(values, done)])


class Output(Protocol):
    """A file that writes all it is given."""

    def write(self, data: memoryview | bytes, /) -> int:
        """Write all of some bytes."""

    def seek(self, offset: int, /) -> int:
        """Continue at an offset."""


class Writer:
    """Writes a file whose metadata may depend on what is written.

    Parameters
    ----------
    file : Output
        Empty.
    arrays : dict of name -> (dtype, shape)
        What will be written.
    metadata : dict of str -> str
        As long as what `finish` will be given, or longer.
    """

    def __init__(self, file: Output, arrays: Arrays, metadata: dict[str, str]) -> None:
        self._file, end = file, 0
        self._entries: dict[str, dict[str, Any]] = {}
        # The widest first: everything is aligned.
        names = sorted(arrays, key=lambda name: -arrays[name][0].itemsize)
        for name in names:
            dtype, shape = arrays[name]
            begin, end = end, end + dtype.itemsize * int(np.prod(shape, dtype=np.int64))
            self._entries[name] = {
                "dtype": type_name(dtype),
                "shape": list(shape),
                "data_offsets": [begin, end],
            }
        self.names = names
        header = self._header(metadata)
        self._length = -(-len(header) // 8) * 8
        self._start = LENGTH_BYTES + self._length  # of the arrays
        file.seek(self._start)

    def _header(self, metadata: dict[str, str]) -> bytes:
        return json.dumps({"__metadata__": metadata, **self._entries}).encode()

    def write(self, pieces: Iterator[npt.NDArray[Any]]) -> int:
        """Write the next array of `names`, whose pieces are contiguous; return its CRC-32."""
        checksum = 0
        for piece in pieces:
            checksum = zlib.crc32(raw(piece), checksum)
            self._file.write(raw(piece))
        return checksum

    def write_at(self, name: str, begin: int, piece: npt.NDArray[Any]) -> None:
        """Write a contiguous piece of an array, from this byte of the array on."""
        self._file.seek(self._start + self._entries[name]["data_offsets"][0] + begin)
        self._file.write(raw(piece))

    def finish(self, metadata: dict[str, str]) -> None:
        """Write the header, with this metadata."""
        header = self._header(metadata).ljust(self._length)
        if len(header) > self._length:
            raise RuntimeError("the metadata is longer than it was said to be")
        self._file.seek(0)
        self._file.write(self._length.to_bytes(LENGTH_BYTES, "little") + header)


class Reader:
    """Reads the arrays of a file that may be damaged, or change meanwhile: nothing maps it.

    Parameters
    ----------
    file : int
        An open file, and not opened again: what was checked is what is read.

    Raises
    ------
    ValueError
        If it is not a safetensors file.
    """

    def __init__(self, file: int) -> None:
        self._file = file
        size = os.fstat(file).st_size
        start = bytearray(min(LENGTH_BYTES, size))
        try:
            self._read_at(0, memoryview(start))
            text = bytearray(header_bytes(bytes(start), size))
            self._read_at(LENGTH_BYTES, memoryview(text))
        except EOFError:
            raise ValueError("its header is cut short") from None
        self._header = parse_header(bytes(text), size)

    @property
    def metadata(self) -> dict[str, str]:
        """What the file says of itself."""
        return self._header.metadata

    def arrays(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Return each array's type and shape; together they have the bytes that the file has."""
        return {name: (one.dtype, one.shape) for name, one in self._header.entries.items()}

    def read(self, name: str, pieces: Places) -> int:
        """Read an array into places, after each of which its function is called.

        Returns
        -------
        int
            The array's CRC-32.

        Raises
        ------
        EOFError
            If the file is too short.
        """
        checksum, offset = 0, self._header.start + self._header.entries[name].begin
        for piece, done in pieces:
            values = raw(piece)
            self._read_at(offset, values)
            offset += values.nbytes
            checksum = zlib.crc32(values, checksum)
            done()
        return checksum

    def _read_at(self, offset: int, values: memoryview) -> None:
        """Read just these bytes; EOFError if the file ends before."""
        while values.nbytes > 0:
            count = os.preadv(self._file, [values[:_MOST_AT_ONCE]], offset)
            if count == 0:
                raise EOFError
            offset, values = offset + count, values[count:]
