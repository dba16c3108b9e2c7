"""The lines of a file of clicks: how they are cut into blocks, and the rule that each must keep.

Lines end with LF or CR LF; the last may lack its end. Tabs separate 40 cells: a label, "0" or "1";
13 integers, each empty or digits after an optional minus sign, of magnitude below 2**63; 26
categoricals, each empty or 1 to 8 hexadecimal digits. :mod:`mpembed.train.data.criteo_parse`
applies this rule to whole blocks at once.
"""

from __future__ import annotations

import gzip
import io
import re
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from mpembed.train.data.clicks import NUM_CATS, NUM_INTS, DataError

_BLOCK_BYTES = 4 << 20
_GZIP_BYTES = 256 << 10
_COLUMNS = 1 + NUM_INTS + NUM_CATS
_HEX = re.compile(rb"[0-9a-fA-F]{1,8}")
_INT = re.compile(rb"-?[0-9]+")


def _is_int64(cell: bytes) -> bool:
    # Python refuses to convert thousands of digits, so they are counted first. -2**63 is excluded
    # because it stands for a missing value.
    digits = cell.removeprefix(b"-").lstrip(b"0")
    return bool(_INT.fullmatch(cell)) and len(digits) <= 19 and int(digits or b"0") < 2**63


def _fault(line: bytes) -> str | None:
    """Return what is wrong with a line without its end, or None."""
    if b"\r" in line:
        return "a carriage return stands alone; lines end with LF or CR LF"
    cells = line.split(b"\t")
    if len(cells) != _COLUMNS:
        return f"{len(cells)} columns, {_COLUMNS} expected (label, 13 integers, 26 categoricals)"
    if cells[0] not in (b"0", b"1"):
        return f"the label is {_show(cells[0])}, neither 0 nor 1"
    for column, cell in enumerate(cells[1 : 1 + NUM_INTS], 1):
        if cell and not _is_int64(cell):
            return (
                f"integer column {column} holds {_show(cell)}, "
                "not a whole number of magnitude below 2^63"
            )
    for column, cell in enumerate(cells[1 + NUM_INTS :], 1):
        if cell and not _HEX.fullmatch(cell):
            return f"categorical column {column} holds {_show(cell)}, not 1 to 8 hexadecimal digits"
    return None


def _show(cell: bytes) -> str:
    return repr(cell if len(cell) <= 24 else cell[:24] + b"...")[1:]


def first_fault(block: bytes) -> tuple[int, str] | None:
    """Find the first line of a block that breaks the rule, line by line.

    Parameters
    ----------
    block : bytes
        From :func:`line_blocks`.

    Returns
    -------
    tuple of int and str, or None
        The number of the line, from 0, and its fault; None if all lines are good.
    """
    for number, line in enumerate(io.BytesIO(block)):
        ended = line.endswith(b"\n")
        fault = _fault(line[:-1].removesuffix(b"\r") if ended else line)
        if fault:
            return number, fault
    return None


def _gzip_pieces(path: Path) -> Iterator[bytes]:
    """Yield all that can be decompressed, even if damaged data follow."""
    parts: list[bytes] = []
    size = 0
    with gzip.open(path, "rb") as file:
        try:
            while part := file.read1(_GZIP_BYTES):
                parts.append(part)
                size += len(part)
                if size >= _BLOCK_BYTES:
                    yield b"".join(parts)
                    parts, size = [], 0
        except (EOFError, OSError, zlib.error):
            yield b"".join(parts)
            raise
    yield b"".join(parts)


def _pieces(path: Path, is_gzip: bool) -> Iterator[bytes]:
    if is_gzip:
        # A thread decompresses the next piece while this one is used.
        pieces = _gzip_pieces(path)
        with ThreadPoolExecutor(1) as pool:
            coming = pool.submit(next, pieces, None)
            while (piece := coming.result()) is not None:
                coming = pool.submit(next, pieces, None)
                yield piece
        return
    with path.open("rb") as file:
        while piece := file.read(_BLOCK_BYTES):
            yield piece


def _cut(path: Path, is_gzip: bool, stop: int) -> Iterator[tuple[bytes, int]]:
    begun: list[bytes] = []  # parts of a line whose end has not been read yet
    for piece in _pieces(path, is_gzip):
        lines = min(piece.count(b"\n"), stop)
        if not lines:
            begun.append(piece)
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
    rest = b"".join(begun)
    if rest:
        yield rest, 1


def line_blocks(path: Path, is_gzip: bool, stop: int) -> Iterator[tuple[bytes, int]]:
    """Cut the first lines of a file into blocks; nothing after them matters.

    Parameters
    ----------
    path : Path
        The file.
    is_gzip : bool
        Whether it is compressed.
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
        for block, lines in _cut(path, is_gzip, stop):
            yield block, lines
            done += lines
    except EOFError:
        raise DataError(f"{path}: line {done + 1}: the gzip data end too early") from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path}: line {done + 1}: the gzip data are damaged: {error}") from None
    except OSError as error:
        reason = error.strerror or error
        raise DataError(f"{path}: line {done + 1}: cannot be read: {reason}") from None
