"""Bytes that an operation must move, and those that its kernels do move, for one row.

The floor counts each byte of the operation's inputs and outputs once. What is moved counts the
32-byte sectors that rows at random places touch, averaged over their alignments, every array that
the kernels keep between them, and every pass over it. Arrays that are read in order cost their
bytes. Uniform indices over a table much larger than the L2 cache: no row comes twice.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

SECTOR = 32
POOL = 20  # lookups a bag
KEY, SLOT, POSITION, BAG, OFFSET, TAG, META = 8, 4, 4, 4, 8, 8, 4
WAYS = 32
KEY_BITS = 27  # of linear row ids: a hundred million rows


@dataclass(frozen=True)
class Format:
    """Bits a value and bytes of header; `type` is the C++ name."""

    name: str
    type: str
    bits: int
    header: int

    def row(self, dim: int) -> int:
        """Return the bytes of a row."""
        return -(-dim * self.bits // 8) + self.header


FORMATS = (
    Format("fp32", "Fp32", 32, 0),
    Format("fp16", "Fp16", 16, 0),
    Format("bf16", "Bf16", 16, 0),
    Format("int8", "Int8", 8, 8),
    Format("int8_fp16", "Int8Fp16", 8, 4),
    Format("int4", "Int4", 4, 4),
    Format("int2", "Int2", 2, 4),
)
STATE = {"sgd": 0, "rowwise_adagrad": 1, "adagrad": 2}  # none, one value a row, one an element


@dataclass(frozen=True)
class Bytes:
    """For one row: the floor, what memory moves, and what the L2 cache serves."""

    floor: float
    memory: float
    l2: float


def sectors(size: int) -> float:
    """Return the bytes of the sectors that a row touches, one of a dense array of such rows."""
    step = math.gcd(size, SECTOR)
    starts = range(0, SECTOR, step)
    touched = sum((start + size - 1) // SECTOR + 1 for start in starts)
    return SECTOR * touched / len(starts)


def forward(fmt: Format, dim: int) -> Bytes:
    """Sum pooling through slots, no row cached; a row is a lookup."""
    out = 4 * dim / POOL
    floor = fmt.row(dim) + KEY + SLOT + (out + OFFSET / POOL)
    moved = sectors(fmt.row(dim)) + KEY + SLOT + OFFSET / POOL + out
    return Bytes(floor, moved, moved)


def update(fmt: Format, dim: int, optimizer: str) -> Bytes:
    """Backward and optimizer step of an uncached row with one lookup."""
    row, grad = fmt.row(dim), 4 * dim
    kind = STATE[optimizer]
    state, state_moved = [(0, 0.0), (8, 2.0 * SECTOR), (8 * dim, 2 * sectors(4 * dim))][kind]
    arrays = KEY + OFFSET + POSITION + BAG + SLOT
    floor = 2 * row + state + grad / POOL + arrays
    fixed = 2 * sectors(row) + state_moved + arrays
    # A bag's gradient comes from memory once and from the L2 cache for its other lookups; so does
    # the number of its bag, one of a sector. Starts are read again where hot rows are looked for.
    return Bytes(floor, fixed + grad / POOL, fixed - BAG + SECTOR + sectors(grad) + OFFSET)


def find() -> Bytes:
    """Look a row up in the cache, where it is not: its set's tags."""
    floor = KEY + TAG * WAYS + SLOT
    moved = floor + 2 * POSITION + OFFSET  # its set and place for the sort, and counts of lookups
    return Bytes(floor, moved, moved)


def choose() -> Bytes:
    """Give a missing row a way of its set, in the place of another row."""
    state = WAYS * (TAG + META)
    floor = KEY + state + TAG + META + SLOT
    # The row's key and slot, the way's tag and state at random places; set, place and outcome.
    moved = state + 4 * SECTOR + 2 * POSITION + TAG
    return Bytes(floor, moved, moved)


def move(fmt: Format, dim: int) -> Bytes:
    """Write a dirty row back and put a missing row in its place."""
    row, cached = fmt.row(dim), 4 * dim
    floor = 2 * cached + 2 * row
    moved = 2 * sectors(cached) + 2 * sectors(row)
    moved += 2 * SECTOR + 2 * POSITION + TAG  # the row's key and slot; set, place and outcome
    return Bytes(floor, moved, moved)


def flush(fmt: Format, dim: int) -> Bytes:
    """Write a dirty slot back."""
    floor = 2 * TAG + 4 * dim + fmt.row(dim)
    moved = 2 * TAG + 4 * dim + sectors(fmt.row(dim))
    return Bytes(floor, moved, moved)


def convert(fmt: Format, dim: int) -> Bytes:
    """Quantize or dequantize a row of a matrix."""
    floor = fmt.row(dim) + 4 * dim
    return Bytes(floor, floor, floor)


def dedup(bits: int = KEY_BITS) -> Bytes:
    """Find the unique rows; a row is a lookup."""
    floor = KEY + POSITION + KEY + OFFSET
    load = KEY + 4 + POSITION
    sort = 4 + -(-bits // 8) * 2 * (4 + POSITION)  # a histogram, then 8 bits a pass
    select = 4 + OFFSET
    segment = 4 + 2 * POSITION + OFFSET + KEY
    moved = load + sort + select + segment
    return Bytes(floor, moved, moved)


def scatter() -> Bytes:
    """Give each lookup the slot of its row; a row is a lookup."""
    floor = POSITION + 2 * SLOT
    # Slots are cleared first and written at random places; the search reads starts.
    return Bytes(floor, floor + SLOT + OFFSET, floor - SLOT + SECTOR + OFFSET)


def prepare() -> Bytes:
    """Turn an index into a linear row id and its bag; a row is a lookup."""
    floor = 8 + KEY + BAG + 2 * OFFSET / POOL
    return Bytes(floor, floor, floor)
