"""Find the line that makes a file of clicks unreadable, slowly and exactly."""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Iterator
from pathlib import Path

from .clicks import NUM_CATS, NUM_INTS, DataError

_COLUMNS = 1 + NUM_INTS + NUM_CATS
_HEX = re.compile(rb"[0-9a-fA-F]{1,8}")
_INT = re.compile(rb"[+-]?[0-9]+")


def _fault(line: bytes) -> str | None:
    """Say what is wrong with a line, if anything."""
    cells = line.split(b"\t")
    if len(cells) != _COLUMNS:
        return f"{len(cells)} columns, {_COLUMNS} expected (label, 13 integers, 26 categoricals)"
    if cells[0] not in (b"0", b"1"):
        return f"the label is {_show(cells[0])}, neither 0 nor 1"
    for column, cell in enumerate(cells[1 : 1 + NUM_INTS], 1):
        if cell and not (_INT.fullmatch(cell) and -(2**63) < int(cell) < 2**63):
            return f"integer column {column} holds {_show(cell)}, not a 64-bit integer"
    for column, cell in enumerate(cells[1 + NUM_INTS :], 1):
        if cell and not _HEX.fullmatch(cell):
            return f"categorical column {column} holds {_show(cell)}, not 1 to 8 hexadecimal digits"
    return None


def _show(cell: bytes) -> str:
    return repr(cell if len(cell) <= 24 else cell[:24] + b"...")[1:]


def _lines(path: Path, is_gzip: bool) -> Iterator[bytes]:
    with gzip.open(path, "rb") if is_gzip else path.open("rb") as file:
        for line in file:
            yield line.rstrip(b"\n").removesuffix(b"\r")


def find_bad_line(path: Path, is_gzip: bool, skip: int = 0) -> None:
    """Raise for the first line that is not of the format.

    Parameters
    ----------
    path : Path
        The file.
    is_gzip : bool
        Whether it is compressed.
    skip : int, optional
        Number of lines at the start that are known to be good.

    Raises
    ------
    DataError
        Naming the file, the line (from 1) and its fault. Returns if no line is at fault.
    """
    number = 0
    try:
        for number, line in enumerate(_lines(path, is_gzip), 1):
            fault = _fault(line) if number > skip else None
            if fault:
                raise DataError(f"{path}: line {number}: {fault}")
    except EOFError:
        raise DataError(f"{path}: line {number + 1}: the gzip data end too early") from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path}: line {number + 1}: the gzip data are damaged: {error}") from None
    except OSError as error:
        raise DataError(f"{path}: line {number + 1}: cannot be read: {error.strerror}") from None
