"""Keys of categorical values: a number that stands for a text wherever and however it is stored.

An integer is the text of its decimal digits, so a value has the same key in CSV and in Parquet. The
keys of short texts are exact and in their order: the shorter first, and texts of one length by
their bytes. Criteo's eight hexadecimal digits thus sort as the numbers that they are, and so do
whole numbers without leading zeros, up to 18 digits.

| texts | keys |
|---|---|
| missing, or empty | ``MISSING_CAT`` |
| up to 8 ASCII characters | length times 2^56, plus 7 bits a character |
| 9 to 18 digits, the first of them not 0 | 2^60 plus the number |
| others | 2^62 plus 62 bits of a hash, of BLAKE2b above 512 bytes |
"""

from __future__ import annotations

from hashlib import blake2b

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from mpembed.train.data.clicks import MISSING_CAT, IntArray
from mpembed.train.data.hashing import GOLDEN, NIBBLES, U64, join_nibbles, mix

_SHORT = 8
_LONG = 512
_DIGITS = 18
_LENGTH_UNIT = 1 << 56
_NUMBER_BASE = 1 << 60
_HASH_BASE = 1 << 62
_BYTE_MASKS = np.array([(1 << 8 * n) - 1 for n in range(9)], np.uint64)
# The steps that take a zero bit out of each byte: mask of the part that stays, of the part that
# moves, and by how many bits.
_PACKING = (
    (0x007F007F007F007F, 0x7F007F007F007F00, 1),
    (0x00003FFF00003FFF, 0x3FFF00003FFF0000, 2),
    (0x000000000FFFFFFF, 0x0FFFFFFF00000000, 4),
)


def _pack(words: U64) -> U64:
    """Pack eight 7-bit characters, the first in the highest byte, into 56 bits."""
    for low, high, shift in _PACKING:
        words = (words & np.uint64(low)) | ((words & np.uint64(high)) >> np.uint64(shift))
    return words


def _unpack(words: U64) -> U64:
    for low, high, shift in reversed(_PACKING):
        words = (words & np.uint64(low)) | ((words << np.uint64(shift)) & np.uint64(high))
    return words


class _Texts:
    """Texts in one buffer, read eight bytes at a time.

    Parameters
    ----------
    data : ndarray of uint8
        The buffer.
    starts, lengths : ndarray of int64, shape (n,)
        Where each text is.
    """

    def __init__(self, data: npt.NDArray[np.uint8], starts: IntArray, lengths: IntArray) -> None:
        padded = np.zeros(len(data) + 8, np.uint8)
        padded[: len(data)] = data
        self._bytes = padded
        # An unaligned word starts at each byte.
        self._words = np.ndarray((len(data) + 1,), "<u8", padded, strides=(1,))
        self.starts, self.lengths = starts, lengths

    def word(self, number: int, rows: IntArray | slice) -> U64:
        """Return eight bytes of some texts, zero after their ends, the first one lowest."""
        left = np.clip(self.lengths[rows] - 8 * number, 0, 8)
        at = np.minimum(self.starts[rows] + 8 * number, len(self._words) - 1)
        words: U64 = self._words[at] & _BYTE_MASKS[left]
        return words

    def hashes(self, rows: IntArray) -> IntArray:
        """Return 62 bits of a hash of some texts."""
        long = self.lengths[rows] > _LONG
        if long.any():
            found = np.empty(len(rows), np.int64)
            found[~long] = self.hashes(rows[~long])
            found[long] = [self._long_hash(row) for row in rows[long].tolist()]
            return found
        lengths = self.lengths[rows]
        state = mix((lengths.astype(np.uint64) + np.uint64(1)) * GOLDEN)
        number, active = 0, np.arange(len(rows))
        while len(active):
            words = self.word(number, rows[active])
            state[active] = mix((state[active] ^ words) * GOLDEN)
            number += 1
            active = active[lengths[active] > 8 * number]
        return (mix(state) >> np.uint64(2)).astype(np.int64)

    def _long_hash(self, row: int) -> int:
        """Return the hash of one text; steps of eight bytes would take long."""
        start = int(self.starts[row])
        text = self._bytes[start : start + int(self.lengths[row])]
        return int.from_bytes(blake2b(text.data, digest_size=8).digest(), "little") >> 2

    def numbers(self, rows: IntArray) -> tuple[npt.NDArray[np.bool_], IntArray]:
        """Return which of some texts are whole numbers of 9 to 18 digits, and those numbers."""
        lengths = self.lengths[rows]
        fit = lengths <= _DIGITS
        candidates = rows[fit]
        # Right-aligned digits; what lies before a text counts as zeros.
        back = np.arange(_DIGITS, 0, -1)
        at = (self.starts + self.lengths)[candidates, None] - back
        digits = np.where(
            back <= self.lengths[candidates, None], self._bytes[np.maximum(at, 0)], 48
        ).astype(np.int64)
        digits -= 48
        good = ((digits >= 0) & (digits <= 9)).all(axis=1)
        good &= self._bytes[self.starts[candidates]] != 48
        powers = 10 ** np.arange(_DIGITS - 1, -1, -1, dtype=np.int64)
        fit[fit] = good
        numbers: IntArray = digits[good] @ powers
        return fit, numbers


def _buffers(texts: pa.Array) -> _Texts:
    wide = pa.types.is_large_string(texts.type) or pa.types.is_large_binary(texts.type)
    _, offset_buffer, data_buffer = texts.buffers()
    stored = np.frombuffer(offset_buffer, np.int64 if wide else np.int32)
    offsets: IntArray = stored[texts.offset : texts.offset + len(texts) + 1].astype(np.int64)
    first, last = int(offsets[0]), int(offsets[-1])
    data = (
        np.frombuffer(data_buffer, np.uint8)[first:last] if last > first else np.empty(0, np.uint8)
    )
    return _Texts(data, offsets[:-1] - first, np.diff(offsets))


def text_keys(texts: pa.Array) -> IntArray:
    """Return the keys of texts.

    Parameters
    ----------
    texts : pyarrow.Array
        Strings or binary, also of the large types, with nulls.

    Returns
    -------
    ndarray of int64
        See the table above.
    """
    if not len(texts):
        return np.empty(0, np.int64)
    found = _buffers(texts)
    words = found.word(0, slice(None)).byteswap()  # now in the order of their bytes
    keys = (_pack(words) + found.lengths.astype(np.uint64) * np.uint64(_LENGTH_UNIT)).astype(
        np.int64
    )
    exact = (found.lengths <= _SHORT) & (words & np.uint64(0x8080808080808080) == 0)
    rest = np.flatnonzero(~exact)
    if len(rest):
        are_numbers, numbers = found.numbers(rest)
        keys[rest[are_numbers]] = _NUMBER_BASE + numbers
        others = rest[~are_numbers]
        keys[others] = _HASH_BASE + found.hashes(others)
    keys[found.lengths == 0] = MISSING_CAT
    if texts.null_count:
        keys[np.asarray(pc.is_null(texts))] = MISSING_CAT
    return keys


def hashed_numbers(keys: IntArray) -> IntArray:
    """Return what tables with a limit of rows hash for each key.

    Parameters
    ----------
    keys : ndarray of int64
        Keys of values.

    Returns
    -------
    ndarray of int64
        The number that eight hexadecimal digits are, in lower case, as in Criteo's format; the key
        itself of everything else.
    """
    eight = np.flatnonzero((keys >= _SHORT * _LENGTH_UNIT) & (keys < (_SHORT + 1) * _LENGTH_UNIT))
    if not len(eight):
        return keys
    packed = (keys[eight] - _SHORT * _LENGTH_UNIT).astype(np.uint64)
    text = _unpack(packed).astype(">u8").view(np.uint8).reshape(-1, 8)
    digits = np.where((text >= 65) & (text <= 70), 255, NIBBLES[text]).astype(np.uint8)
    good = digits.max(axis=1) < 16
    numbers = keys.copy()
    numbers[eight[good]] = join_nibbles(digits[good])
    return numbers
