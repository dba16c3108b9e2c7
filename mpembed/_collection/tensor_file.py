"""Safetensors files in pieces: records would have to be copied whole for the library's functions.

A file is the length of its header (8 bytes, little endian), the header (JSON: each array's dtype,
shape and place, and ``__metadata__``), and the arrays one after the other.
"""

import json
import zlib
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

Arrays = dict[str, tuple[np.dtype[Any], tuple[int, ...]]]


def type_name(dtype: np.dtype[Any]) -> str:
    """Return the name of an element type: kind and bits, such as ``"U8"``."""
    return f"{dtype.kind.upper()}{8 * dtype.itemsize}"


def raw(array: npt.NDArray[Any]) -> memoryview:
    """Return the bytes of a contiguous array."""
    return array.reshape(-1).view(np.uint8).data


class Writer:
    """Writes a file whose metadata may depend on what is written.

    Parameters
    ----------
    file : binary file
        Empty, and can be sought.
    arrays : dict of name -> (dtype, shape)
        What will be written.
    metadata : dict of str -> str
        As long as what `finish` will be given, or longer.
    """

    def __init__(self, file: BinaryIO, arrays: Arrays, metadata: dict[str, str]) -> None:
        self._file, self._entries, end = file, {}, 0
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
        file.seek(8 + self._length)

    def _header(self, metadata: dict[str, str]) -> bytes:
        return json.dumps({"__metadata__": metadata, **self._entries}).encode()

    def write(self, pieces: Iterator[npt.NDArray[Any]]) -> int:
        """Write the next array of `names`, whose pieces are contiguous; return its CRC-32."""
        checksum = 0
        for piece in pieces:
            checksum = zlib.crc32(raw(piece), checksum)
            self._file.write(raw(piece))
        return checksum

    def finish(self, metadata: dict[str, str]) -> None:
        """Write the header, with this metadata."""
        header = self._header(metadata).ljust(self._length)
        if len(header) > self._length:
            raise RuntimeError("the metadata is longer than it was said to be")
        self._file.seek(0)
        self._file.write(self._length.to_bytes(8, "little") + header)
        self._file.flush()


class Reader:
    """Reads the arrays of a file that safetensors has found right.

    Parameters
    ----------
    file : binary file
        At its beginning.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._start = 8 + int.from_bytes(file.read(8), "little")
        self._header = json.loads(file.read(self._start - 8))
        self._header.pop("__metadata__", None)

    def arrays(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Return each array's type and shape."""
        return {
            name: (entry["dtype"], tuple(entry["shape"])) for name, entry in self._header.items()
        }

    def read(self, name: str, pieces: Iterator[tuple[npt.NDArray[Any], Callable[[], None]]]) -> int:
        """Read an array into contiguous pieces, after each of which its function is called.

        Returns
        -------
        int
            The array's CRC-32.

        Raises
        ------
        EOFError
            If the file is too short.
        """
        checksum = 0
        self._file.seek(self._start + self._header[name]["data_offsets"][0])
        for piece, done in pieces:
            values = raw(piece)
            if self._file.readinto(values) != values.nbytes:  # type: ignore[attr-defined]
                raise EOFError(name)
            checksum = zlib.crc32(values, checksum)
            done()
        return checksum
