"""Columns of pyarrow as labels, numbers and keys; what cannot be one is refused by its row."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as csv

from mpembed.train.data.clicks import MISSING_CAT, MISSING_LABEL, Bags, IntArray
from mpembed.train.data.keys import text_keys

F64 = npt.NDArray[np.float64]
#: Texts of labels; those at odd places mean a click.
_LABELS = pa.array(
    [b"0", b"1", b"false", b"true", b"False", b"True", b"FALSE", b"TRUE", b"0.0", b"1.0"],
    pa.binary(),
)
_MAX_BLOCK = 2**31 - 1  # pyarrow's limit
_FP32_MAX = float(np.finfo(np.float32).max)


class BadValueError(Exception):
    """A value cannot be used.

    Parameters
    ----------
    row : int
        Its row, from 0.
    message : str
        What the column holds, and what it should.
    """

    def __init__(self, row: int, message: str) -> None:
        super().__init__(message)
        self.row = row


def read_options(block: bytes, names: Sequence[str]) -> csv.ReadOptions:
    """Return what makes pyarrow's reader take a block without a header at once."""
    return csv.ReadOptions(column_names=names, block_size=min(len(block) + 1, _MAX_BLOCK))


def one_chunk(column: pa.ChunkedArray) -> pa.Array:
    """Return a column in one piece; it is, unless its block was very large, and joining copies."""
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def is_text(kind: pa.DataType) -> bool:
    """Return whether a column holds strings or bytes."""
    types = pa.types
    return bool(
        types.is_string(kind)
        or types.is_large_string(kind)
        or types.is_binary(kind)
        or types.is_large_binary(kind)
        or types.is_fixed_size_binary(kind)
        or (hasattr(types, "is_string_view") and types.is_string_view(kind))
        or (hasattr(types, "is_binary_view") and types.is_binary_view(kind))
    )


def is_list(kind: pa.DataType) -> bool:
    """Return whether a column holds lists."""
    types = pa.types
    return bool(types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind))


def _plain_type(kind: pa.DataType) -> pa.DataType:
    """Return the type of a column's values, without a dictionary."""
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def is_number(kind: pa.DataType) -> bool:
    """Return whether a column can be numbers."""
    types, kind = pa.types, _plain_type(kind)
    return bool(
        types.is_integer(kind)
        or types.is_floating(kind)
        or types.is_boolean(kind)
        or types.is_decimal(kind)
        or types.is_null(kind)
    )


def is_categorical(kind: pa.DataType) -> bool:
    """Return whether a column can be a categorical: strings, integers, booleans, lists of them."""
    if is_list(kind):
        return not is_list(kind.value_type) and is_categorical(kind.value_type)
    kind = _plain_type(kind)
    return is_text(kind) or (is_number(kind) and not pa.types.is_decimal(kind))


def is_label(kind: pa.DataType) -> bool:
    """Return whether a column can be a label."""
    return is_number(kind) or is_text(_plain_type(kind))


def _plain(column: pa.Array) -> pa.Array:
    """Return a column without a dictionary, and texts as bytes."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    types = pa.types
    if types.is_string(column.type) or types.is_fixed_size_binary(column.type):
        return column.cast(pa.binary())
    if is_text(column.type) and not types.is_binary(column.type):
        return column.cast(pa.large_binary())
    return column


def _show(column: pa.Array, row: int) -> str:
    value = column[row].as_py()
    if isinstance(value, bytes):
        value = value.decode("utf-8", "backslashreplace")
    if isinstance(value, str) and len(value) > 24:
        value = value[:24] + "..."
    return "nothing" if value is None or value == "" else repr(value)


def _refuse(bad: npt.NDArray[np.bool_], column: pa.Array, name: str, wanted: str) -> None:
    if bad.any():
        row = int(np.argmax(bad))
        raise BadValueError(row, f"column {name!r} holds {_show(column, row)}, {wanted}")


def labels(column: pa.Array, name: str, missing: bool = False) -> IntArray:
    """Return labels as 0 and 1.

    Parameters
    ----------
    column : pyarrow.Array
        Numbers, booleans or texts.
    name : str
        Name of the column, for messages.
    missing : bool
        Whether labels may be missing: null, empty or NaN.

    Returns
    -------
    ndarray of int64
        Zeros and ones, and ``MISSING_LABEL``.

    Raises
    ------
    BadValueError
        If a value is neither of the two, or missing where it may not be.
    """
    plain = _plain(column)
    if is_text(plain.type):
        texts = plain.cast(pa.binary())
        found = np.asarray(pc.fill_null(pc.index_in(texts, value_set=_LABELS), -1)).astype(np.int64)
        values: IntArray = np.where(found < 0, MISSING_LABEL, found % 2)
        absent = np.asarray(pc.equal(pc.fill_null(texts, b""), b""))
    else:
        numbers = np.asarray(pc.fill_null(plain.cast(pa.float64(), safe=False), float("nan")))
        values = np.where(numbers == 1, 1, np.where(numbers == 0, 0, MISSING_LABEL))
        values, absent = values.astype(np.int64), np.isnan(numbers)
    bad = (values == MISSING_LABEL) & ~(absent & missing)
    _refuse(bad, column, name, "not a label: 0, 1, false or true")
    return values


def numbers(column: pa.Array, name: str) -> F64:
    """Return numbers, NaN where missing.

    Parameters
    ----------
    column : pyarrow.Array
        Numbers.
    name : str
        Name of the column, for messages.

    Returns
    -------
    ndarray of float64
        The numbers.

    Raises
    ------
    BadValueError
        If a number is infinite or too large for FP32.
    """
    plain = _plain(column)
    if pa.types.is_boolean(plain.type):
        plain = plain.cast(pa.int8())
    cast = plain.cast(pa.float64(), safe=False)
    values: F64 = np.asarray(pc.fill_null(cast, float("nan")), np.float64)
    _refuse(np.abs(values) > _FP32_MAX, column, name, "not a finite number of FP32's range")
    return values


def keys(column: pa.Array, name: str) -> IntArray:
    """Return the keys of values.

    Parameters
    ----------
    column : pyarrow.Array
        Strings, integers, booleans, or floats that are whole numbers.
    name : str
        Name of the column, for messages.

    Returns
    -------
    ndarray of int64
        See `mpembed.train.data.keys`.

    Raises
    ------
    BadValueError
        If a float is not a whole number.
    """
    # A slice has the dictionary of the whole, which may be far longer.
    if pa.types.is_dictionary(column.type) and len(column.dictionary) <= len(column):
        own = keys(column.dictionary, name)
        places = np.asarray(pc.fill_null(column.indices.cast(pa.int64()), len(own)))
        found: IntArray = np.append(own, MISSING_CAT)[places]
        return found
    plain = _plain(column)
    if pa.types.is_null(plain.type):
        return np.full(len(plain), MISSING_CAT, np.int64)
    if pa.types.is_floating(plain.type):
        values = np.asarray(pc.fill_null(plain.cast(pa.float64()), float("nan")))
        missing = np.isnan(values)
        whole = missing | ((np.floor(values) == values) & (np.abs(values) < 2.0**63))
        _refuse(~whole, column, name, "not a whole number; use it with --dense")
        plain = pa.array(np.where(missing, 0.0, values).astype(np.int64), mask=missing)
    if not is_text(plain.type):
        plain = plain.cast(pa.string())
    return text_keys(plain)


def bags(column: pa.Array, name: str, separator: str | None = None) -> Bags:
    """Return the keys of a column that may hold lists.

    Parameters
    ----------
    column : pyarrow.Array
        Values that `keys` takes, or lists of them.
    name : str
        Name of the column, for messages.
    separator : str, optional
        What separates the values in a text; by default a text is one value.

    Returns
    -------
    Bags
        A missing or empty list holds one missing value, as a cell without a value does.

    Raises
    ------
    BadValueError
        As `keys`.
    """
    if separator is not None and is_text(_plain_type(column.type)):
        column = pc.split_pattern(_plain(column), separator.encode())
    if not is_list(column.type):
        own = keys(column, name)
        return Bags(own, np.arange(len(own) + 1, dtype=np.int64))
    lengths = np.asarray(pc.fill_null(pc.list_value_length(column), 0)).astype(np.int64)
    values = column.flatten()  # without those of missing lists
    try:
        own = keys(values, name)
    except BadValueError as error:
        row = int(np.searchsorted(np.cumsum(lengths), error.row, side="right"))
        raise BadValueError(row, str(error)) from None
    filled = np.maximum(lengths, 1)
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(filled, out=offsets[1:])
    joined = np.full(offsets[-1], MISSING_CAT, np.int64)
    joined[np.repeat(lengths > 0, filled)] = own
    return Bags(joined, offsets)
