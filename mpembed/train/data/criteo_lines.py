"""The rule that each line of a file in Criteo's format must keep.

Lines end with LF or CR LF; the last may lack its end. Tabs separate 40 cells: a label, "0" or "1";
13 integers, each empty or digits after an optional minus sign, of magnitude below 2**63; 26
categoricals, each empty or 1 to 8 hexadecimal digits. :mod:`mpembed.train.data.criteo_parse`
applies this rule to whole blocks at once.
"""

from __future__ import annotations

import io
import re

from mpembed.train.data.clicks import NUM_CATS, NUM_INTS

#: Cells of a line.
COLUMNS = 1 + NUM_INTS + NUM_CATS
_HEX = re.compile(rb"[0-9a-fA-F]{1,8}")
_INT = re.compile(rb"-?[0-9]+")


def _is_int64(cell: bytes) -> bool:
    # Python refuses to convert thousands of digits, so they are counted first. -2**63 is excluded
    # because it stands for a missing value.
    digits = cell.removeprefix(b"-").lstrip(b"0")
    return bool(_INT.fullmatch(cell)) and len(digits) <= 19 and int(digits or b"0") < 2**63


def _fault(line: bytes, labels: bool = True) -> str | None:
    """Return what is wrong with a line without its end, or None."""
    if b"\r" in line:
        return "a carriage return stands alone; lines end with LF or CR LF"
    cells = line.split(b"\t")
    if not labels:
        if len(cells) != COLUMNS - 1:
            return f"{len(cells)} columns, {COLUMNS - 1} expected (13 integers, 26 categoricals)"
        cells = [b"0", *cells]
    if len(cells) != COLUMNS:
        return f"{len(cells)} columns, {COLUMNS} expected (label, 13 integers, 26 categoricals)"
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


def first_fault(block: bytes, labels: bool = True) -> tuple[int, str] | None:
    """Find the first line of a block that breaks the rule, line by line.

    Parameters
    ----------
    block : bytes
        From :func:`mpembed.train.data.lines.line_blocks`.
    labels : bool
        Whether the lines start with a label.

    Returns
    -------
    tuple of int and str, or None
        The number of the line, from 0, and its fault; None if all lines are good.
    """
    for number, line in enumerate(io.BytesIO(block)):
        ended = line.endswith(b"\n")
        fault = _fault(line[:-1].removesuffix(b"\r") if ended else line, labels)
        if fault:
            return number, fault
    return None
