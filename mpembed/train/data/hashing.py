"""Hashes and numbers of eight characters at once, the same on every machine."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

U64 = npt.NDArray[np.uint64]
GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MULTIPLIERS = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)

#: The value of each hexadecimal digit; 255 for every other character.
NIBBLES = np.full(256, 255, np.uint8)
NIBBLES[np.frombuffer(b"0123456789abcdef", np.uint8)] = np.arange(16)
NIBBLES[np.frombuffer(b"ABCDEF", np.uint8)] = np.arange(10, 16)


def mix(x: U64) -> U64:
    """Apply the finaliser of SplitMix64 to each element; it is a bijection."""
    x = (x ^ (x >> np.uint64(30))) * _MULTIPLIERS[0]
    x = (x ^ (x >> np.uint64(27))) * _MULTIPLIERS[1]
    return x ^ (x >> np.uint64(31))


def join_nibbles(digits: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    """Join eight hexadecimal digits, shape (n, 8) with values 0 to 15, into a number each."""
    # As one number, eight bytes of a nibble each are joined: into pairs, then fours, then all.
    values = np.ascontiguousarray(digits).reshape(-1).view(">i8").astype(np.int64)
    values = (values | values >> 4) & 0x00FF00FF00FF00FF
    values = (values | values >> 8) & 0x0000FFFF0000FFFF
    joined: npt.NDArray[np.int64] = (values | values >> 16) & 0xFFFFFFFF
    return joined
