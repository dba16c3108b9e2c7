"""The lines of a text file, plain or compressed, in blocks."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa

from mpembed.train.data.clicks import DataError

_BLOCK_BYTES = 4 << 20
_PART_BYTES = 256 << 10
# A file without line ends would otherwise be read into memory as one line.
_LINE_BYTES = 64 << 20


class _TruncatedError(Exception):
    """The compressed data end too early."""


class _DamagedError(Exception):
    """The compressed data cannot be decompressed; the message says why."""


def _gzip_reader(path: Path) -> Iterator[bytes]:
    with gzip.open(path, "rb") as file:
        try:
            while part := file.read1(_PART_BYTES):
                yield part
        except EOFError:
            raise _TruncatedError from None
        except (gzip.BadGzipFile, zlib.error) as error:
            raise _DamagedError(str(error)) from None


def _zstd_reader(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file, pa.CompressedInputStream(file, "zstd") as stream:
        try:
            while part := stream.read(_PART_BYTES):
                yield part
        except (OSError, pa.ArrowInvalid) as error:
            if "Truncated" in str(error):
                raise _TruncatedError from None
            if getattr(error, "errno", None) is None:
                raise _DamagedError(str(error)) from None
            raise


#: What reads compressed files, by the name of the compression.
READERS: dict[str, Callable[[Path], Iterator[bytes]]] = {
    "gzip": _gzip_reader,
    "zstd": _zstd_reader,
}


def _joined(parts: Iterator[bytes]) -> Iterator[bytes]:
    """Yield all that can be decompressed in pieces, even if damaged data follow."""
    begun: list[bytes] = []
    size = 0
    try:
        for part in parts:
            begun.append(part)
            size += len(part)
            if size >= _BLOCK_BYTES:
                yield b"".join(begun)
                begun, size = [], 0
    except (_TruncatedError, _DamagedError, OSError):
        yield b"".join(begun)
        raise
    yield b"".join(begun)


def _pieces(path: Path, compression: str | None) -> Iterator[bytes]:
    if compression is not None:
        # A thread decompresses the next piece while this one is used.
        pieces = _joined(READERS[compression](path))
        with ThreadPoolExecutor(1) as pool:
            coming = pool.submit(next, pieces, None)
            while (piece := coming.result()) is not None:
                coming = pool.submit(next, pieces, None)
                yield piece
        return
    with path.open("rb") as file:
        while piece := file.read(_BLOCK_BYTES):
            yield piece


def head(path: Path, compression: str | None, size: int) -> bytes:
    """Return the first bytes of the text; fewer where the file is damaged.

    Parameters
    ----------
    path : Path
        The file.
    compression : str or None
        A key of `READERS`, or None.
    size : int
        Number of bytes wanted.

    Returns
    -------
    bytes
        At most `size` bytes.
    """
    if compression is None:
        with path.open("rb") as file:
            return file.read(size)
    found = b""
    try:
        for part in READERS[compression](path):
            found += part
            if len(found) >= size:
                break
    except (_TruncatedError, _DamagedError):
        pass  # reading the lines says where
    return found[:size]


def _cut(path: Path, compression: str | None, stop: int) -> Iterator[tuple[bytes, int]]:
    done = 0
    begun: list[bytes] = []  # parts of a line whose end has not been read yet
    for piece in _pieces(path, compression):
        lines = min(piece.count(b"\n"), stop)
        if not lines:
            begun.append(piece)
            if sum(map(len, begun)) > _LINE_BYTES:
                raise DataError(
                    f"{path}: line {done + 1}: is longer than {_LINE_BYTES >> 20} MiB; lines end "
                    "with LF or CR LF"
                )
            continue
        stop -= lines
        end = piece.rfind(b"\n") + 1
        if not stop:  # this is the last block; find the end of its last line
            end = int(np.flatnonzero(np.frombuffer(piece, np.uint8) == 10)[lines - 1]) + 1
        begun.append(piece[:end])
        yield b"".join(begun), lines
        if not stop:
            return
        begun = [piece[end:]]
        done += lines
    rest = b"".join(begun)
    if rest:
        yield rest, 1


def line_blocks(path: Path, compression: str | None, stop: int) -> Iterator[tuple[bytes, int]]:
    """Cut the first lines of a file into blocks; nothing after them matters.

    Parameters
    ----------
    path : Path
        The file.
    compression : str or None
        A key of `READERS`, or None.
    stop : int
        Number of lines wanted, at least 1.

    Yields
    ------
    tuple of bytes and int
        A block of whole lines, and their number; only the file's last line may lack its end.

    Raises
    ------
    DataError
        If the file cannot be read or ends too early; the message names the file and the line.
    """
    done = 0
    try:
        for block, lines in _cut(path, compression, stop):
            yield block, lines
            done += lines
    except _TruncatedError:
        raise DataError(f"{path}: line {done + 1}: the {compression} data end too early") from None
    except _DamagedError as error:
        raise DataError(
            f"{path}: line {done + 1}: the {compression} data are damaged: {error}"
        ) from None
    except OSError as error:
        reason = error.strerror or error
        raise DataError(f"{path}: line {done + 1}: cannot be read: {reason}") from None


def first_line(path: Path, compression: str | None) -> bytes:
    """Return the first line of a file, with its end; empty if the file is.

    Parameters
    ----------
    path : Path
        The file.
    compression : str or None
        A key of `READERS`, or None.

    Returns
    -------
    bytes
        The line.

    Raises
    ------
    DataError
        As `line_blocks`.
    """
    return next((block for block, _ in line_blocks(path, compression, 1)), b"")
