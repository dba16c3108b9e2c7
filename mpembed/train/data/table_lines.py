"""Lines of text tables: how one is cut into cells, and what no line may have."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable

import numpy as np

#: Delimiters that are recognised, with their names in messages.
DELIMITERS = {",": "comma", "\t": "tab", ";": "semicolon", "|": "bar"}
BOM = b"\xef\xbb\xbf"
OPEN_QUOTE = "a quote is not closed on its line; a quote in a cell is doubled, in a quoted cell"


class BadLineError(Exception):
    """A line cannot be used.

    Parameters
    ----------
    line : int
        Its number in the block, from 0.
    message : str
        What is wrong.
    """

    def __init__(self, line: int, message: str) -> None:
        super().__init__(message)
        self.line = line


def split_line(line: bytes, delimiter: str) -> list[str]:
    """Return the cells of one line.

    Parameters
    ----------
    line : bytes
        The line; a byte-order mark and the end are left out.
    delimiter : str
        One character.

    Returns
    -------
    list of str
        The cells; bytes that are not UTF-8 are shown as escapes.
    """
    text = line.removeprefix(BOM).rstrip(b"\r\n").decode("utf-8", "backslashreplace")
    try:
        return next(csv.reader([text], delimiter=delimiter), [""]) if text else [""]
    except csv.Error:  # a cell is longer than Python's reader takes
        return text.split(delimiter)


def find_delimiter(line: bytes) -> str | None:
    """Return the delimiter that a line has most of outside quotes, or None."""
    bare = re.sub(rb'"[^"]*"', b"", line)
    counts = {delimiter: bare.count(delimiter.encode()) for delimiter in DELIMITERS}
    best = max(counts, key=lambda delimiter: counts[delimiter])
    return best if counts[best] else None


def has_open_quote(line: bytes, delimiter: bytes) -> bool:
    """Return whether a quoted cell of a line is not closed on it.

    Parameters
    ----------
    line : bytes
        One line. A quote opens a cell only where it is its first character.
    delimiter : bytes
        One character.

    Returns
    -------
    bool
        Whether pyarrow would go on in the next line.
    """
    at = 0
    while True:
        if line[at : at + 1] == b'"':
            at = line.find(b'"', at + 1)
            while at >= 0 and line[at + 1 : at + 2] == b'"':
                at = line.find(b'"', at + 2)
            if at < 0:
                return True
        at = line.find(delimiter, at) + 1
        if not at:
            return False


def check_lines(block: bytes) -> None:
    """Raise BadLineError for lines that pyarrow would join, split or skip.

    Parameters
    ----------
    block : bytes
        Whole lines.

    Raises
    ------
    BadLineError
        For the first one of a kind.
    """
    if block.count(b"\r") != block.count(b"\r\n"):
        alone = re.search(rb"\r(?!\n)", block)
        line = block.count(b"\n", 0, alone.start()) if alone else 0
        raise BadLineError(line, "a carriage return stands alone; lines end with LF or CR LF")
    if block.startswith((b"\n", b"\r\n")) or b"\n\n" in block or b"\n\r\n" in block:
        empty = re.match(rb"\r?\n", block) or re.search(rb"\n\r?\n", block)
        assert empty is not None
        raise BadLineError(block.count(b"\n", 0, empty.end() - 1), "the line is empty")
    if b'"' in block:
        text = np.frombuffer(block, np.uint8)
        lines = np.searchsorted(np.flatnonzero(text == 10), np.flatnonzero(text == 34))
        odd = np.bincount(lines) % 2
        if odd.any():
            raise BadLineError(int(np.argmax(odd)), OPEN_QUOTE)


def first_failure(block: bytes, fails: Callable[[bytes, int], bool]) -> tuple[int, bytes]:
    """Find the first line of a block that fails, by halves.

    Parameters
    ----------
    block : bytes
        Whole lines, at least one of which fails by itself.
    fails : callable
        Says whether some lines, whose number it gets too, hold one that fails.

    Returns
    -------
    tuple of int and bytes
        The number of the line, from 0, and the line.
    """
    ends = np.flatnonzero(np.frombuffer(block, np.uint8) == 10) + 1
    if not block.endswith(b"\n"):
        ends = np.append(ends, len(block))
    starts = np.concatenate([[0], ends[:-1]])
    low, high = 0, len(ends)  # the first failure is in these lines
    while high - low > 1:
        middle = (low + high) // 2
        if fails(block[starts[low] : ends[middle - 1]], middle - low):
            high = middle
        else:
            low = middle
    return low, block[starts[low] : ends[low]]
