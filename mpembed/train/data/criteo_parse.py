"""Parse whole blocks of click lines at once, by the rule of :mod:`mpembed.train.data.criteo_lines`.

pyarrow's reader does the work. It accepts more than the rule does, so the rest is refused here:
characters that no cell may hold, labels such as "00", and other ends of lines.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as csv

from mpembed.train.data.arrow_columns import one_chunk, read_options
from mpembed.train.data.clicks import (
    CRITEO_COLUMNS,
    MISSING_CAT,
    MISSING_INT,
    MISSING_LABEL,
    NUM_INTS,
    Clicks,
)
from mpembed.train.data.hashing import NIBBLES, join_nibbles

_NAMES = (CRITEO_COLUMNS.label, *CRITEO_COLUMNS.dense, *CRITEO_COLUMNS.categorical)
# All characters of a good block. pyarrow skips spaces and a byte-order mark, and reads 0x10 as 16.
_CHARACTERS = b"0123456789abcdefABCDEF-\t\r\n"


class BadBlockError(Exception):
    """A line of the block breaks the rule; `first_fault` says which."""


def _text(column: pa.Array, width: int) -> npt.NDArray[np.uint8]:
    """Return cells that are `width` bytes long each, as a matrix."""
    _, offsets, data = column.buffers()
    start = int(np.frombuffer(offsets, np.int32)[column.offset])
    text = np.frombuffer(data, np.uint8)[start : start + width * len(column)]
    return text.reshape(-1, width)


def _labels(column: pa.Array) -> npt.NDArray[np.int64]:
    if (np.asarray(pc.binary_length(column)) != 1).any():
        raise BadBlockError
    digits = NIBBLES[_text(column, 1)[:, 0]]
    if digits.max() > 1:
        raise BadBlockError
    return digits.astype(np.int64)


def _ints(column: pa.Array) -> npt.NDArray[np.int64]:
    values: npt.NDArray[np.int64] = np.asarray(pc.fill_null(column, MISSING_INT))
    if np.count_nonzero(values == MISSING_INT) != column.null_count:
        raise BadBlockError  # a cell holds the number that stands for a missing value
    return values


def _cats(column: pa.Array) -> npt.NDArray[np.int64]:
    """Convert up to eight hexadecimal digits a cell to numbers, empty cells to ``MISSING_CAT``."""
    lengths = np.asarray(pc.binary_length(column))
    if lengths.max() > 8:
        raise BadBlockError
    # Padded to eight digits, the cells lie in the data buffer as a plain matrix.
    digits = np.take(NIBBLES, _text(pc.ascii_lpad(column, width=8, padding="0"), 8))
    if digits.max() > 15:
        raise BadBlockError
    values = join_nibbles(digits)
    values[lengths == 0] = MISSING_CAT
    return values


def _read(block: bytes, names: Sequence[str]) -> pa.Table:
    types = dict.fromkeys(names, pa.string())
    types |= dict.fromkeys(CRITEO_COLUMNS.dense, pa.int64())
    return csv.read_csv(
        pa.BufferReader(block),
        read_options=read_options(block, names),
        parse_options=csv.ParseOptions(
            delimiter="\t", quote_char=False, escape_char=False, ignore_empty_lines=False
        ),
        convert_options=csv.ConvertOptions(
            column_types=types, null_values=[""], strings_can_be_null=False, check_utf8=False
        ),
    )


def parse_block(block: bytes, lines: int, labels: bool = True) -> Clicks:
    """Parse a block of whole lines.

    Parameters
    ----------
    block : bytes
        From :func:`mpembed.train.data.lines.line_blocks`.
    lines : int
        Number of its lines, at least 1.
    labels : bool
        Whether the lines start with a label.

    Returns
    -------
    Clicks
        One a line, with ``MISSING_LABEL`` where lines have no label.

    Raises
    ------
    BadBlockError
        If a line breaks the rule.
    """
    if block.translate(None, _CHARACTERS) or block.endswith(b"\r"):
        raise BadBlockError
    try:
        table = _read(block, _NAMES if labels else _NAMES[1:])
    except (pa.ArrowInvalid, pa.ArrowCapacityError) as error:
        raise BadBlockError(str(error)) from None
    if len(table) != lines:  # pyarrow ends a line at a lone carriage return
        raise BadBlockError
    # An empty line passes for a row of empty cells; a label is not empty.
    if not labels and block.count(b"\t") != lines * (len(table.columns) - 1):
        raise BadBlockError
    columns = [one_chunk(column) for column in table.columns]
    found = _labels(columns.pop(0)) if labels else np.full(lines, MISSING_LABEL, np.int64)
    return Clicks(
        found,
        np.stack([_ints(column) for column in columns[:NUM_INTS]]),
        np.stack([_cats(column) for column in columns[NUM_INTS:]]),
    )
