"""Bytes per row that an operation must move, and bytes that its kernels move.

The floor counts each byte of the operation's inputs and outputs once. Moved bytes count whole
32-byte sectors for rows at random addresses, averaged over their alignments, and every pass over
the arrays that the kernels keep between them; an array that is read in order costs its bytes.
Indices are uniform over a table much larger than the L2 cache, so no row occurs twice.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from mpembed_gpu.registry import Format, Optimizer

SECTOR = 32
POOL = 20  # lookups per bag
ADMITTED = 24  # a key, a tag and a slot
KEY, SLOT, POSITION, BAG, OFFSET, TAG, META = 8, 4, 4, 4, 8, 8, 4
WAYS = 32
WIDEST = 16  # bytes of a load
KEY_BITS = 27  # of linear row ids: a hundred million rows


@dataclass(frozen=True)
class Bytes:
    """For one row: the floor, what memory moves, and what the L2 cache serves."""

    floor: float
    memory: float
    l2: float


def sectors(size: int) -> float:
    """Return the bytes of the sectors that a row touches, on average over a dense array."""
    step = math.gcd(size, SECTOR)
    starts = range(0, SECTOR, step)
    touched = sum((start + size - 1) // SECTOR + 1 for start in starts)
    return SECTOR * touched / len(starts)


def forward(fmt: Format, dim: int, pool: int = POOL, value: int = 4) -> Bytes:
    """Sum pooling through slots, no row cached; a row is a lookup.

    An output has `value` bytes an element.
    """
    out = value * dim / pool
    floor = fmt.row(dim) + KEY + SLOT + (out + OFFSET / pool)
    moved = sectors(fmt.row(dim)) + KEY + SLOT + OFFSET / pool + out
    return Bytes(floor, moved, moved)


def stored(fmt: Format, dim: int, optimizer: Optimizer) -> tuple[int, ...]:
    """Return the bytes from one row of a table to the next, with FP32 states.

    A row lies beside its states of one value, and states of a value an element beside each other,
    as a collection lays them on a device: each aligned as its size allows, unless that takes more
    than a hundredth.
    """
    beside = [fmt.row(dim), *(one.size(dim) for one in optimizer.states if not one.element)]
    apart = [one.size(dim) for one in optimizer.states if one.element]
    return (*_record(beside), *_record(apart))


def _record(sizes: list[int]) -> tuple[int, ...]:
    """Return the stride of a record of these fields, or each field's where they lie apart."""
    steps = [math.gcd(size, WIDEST) for size in sizes]
    end = 0
    for size, step in zip(sizes, steps, strict=True):
        end = -(-end // step) * step + size
    stride = -(-end // max(steps, default=1)) * max(steps, default=1)
    return (stride,) if 0 < stride <= 1.01 * sum(sizes) else tuple(sizes)


def record(fmt: Format, dim: int, optimizer: Optimizer) -> float:
    """Return the bytes of the sectors of a row and its states in its table."""
    return sum(map(sectors, stored(fmt, dim, optimizer)))


def update(fmt: Format, dim: int, optimizer: Optimizer, pool: int = POOL, value: int = 4) -> Bytes:
    """Backward and optimizer step of an uncached row with one lookup.

    A gradient has `value` bytes an element.
    """
    row, grad = fmt.row(dim), value * dim
    state = sum(one.size(dim) for one in optimizer.states)
    arrays = KEY + OFFSET + POSITION + BAG + SLOT
    floor = 2 * (row + state) + grad / pool + arrays
    fixed = 2 * record(fmt, dim, optimizer) + arrays
    # A bag's gradient comes from memory once and from the L2 cache for the bag's other lookups. The
    # number of a lookup's bag costs a sector. The search for hot rows reads the starts again.
    return Bytes(floor, fixed + grad / pool, fixed - BAG + SECTOR + sectors(grad) + OFFSET)


def find() -> Bytes:
    """Look up a row that is not cached: read its set's tags."""
    floor = KEY + TAG * WAYS + SLOT
    # The list of its set, counts of lookups, and the slot once more, for the lookup.
    moved = floor + POSITION + OFFSET + SECTOR + SLOT
    return Bytes(floor, moved, moved)


def tags() -> Bytes:
    """Read the tags of a set and the policy's states of its ways."""
    state = WAYS * (TAG + META)
    return Bytes(state, state, state)


def choose() -> Bytes:
    """Give a missing row the way of another row of its set."""
    state = tags().memory
    floor = KEY + state + TAG + META + SLOT
    # The list's head, the next miss, the row's key and slot, the way's tag and state at random
    # places; the set, and what is admitted.
    moved = state + 6 * SECTOR + POSITION + ADMITTED
    return Bytes(floor, moved, moved)


def miss() -> Bytes:
    """Read a miss of a set's list, or what is counted of it: two values at random places."""
    return Bytes(POSITION + KEY, 2 * SECTOR, 2 * SECTOR)


def found() -> Bytes:
    """Read whether the admission found a row in the cache."""
    return Bytes(0, SLOT, SLOT)


def occurrence(dim: int, pool: int, value: int) -> Bytes:
    """Add the gradient of one more lookup of a row to that of the others."""
    grad = value * dim
    floor = POSITION + BAG + grad / pool
    return Bytes(floor, floor, POSITION + SECTOR + sectors(grad))


def move(fmt: Format, dim: int, optimizer: Optimizer | None = None) -> Bytes:
    """Write a dirty row back and load a missing row in its place, with the optimizer's states."""
    states = optimizer.states if optimizer is not None else ()
    state = sum(one.size(dim) for one in states)
    row, cached = fmt.row(dim) + state, 4 * dim + state
    kept = sectors(fmt.row(dim)) if optimizer is None else record(fmt, dim, optimizer)
    floor = 2 * cached + 2 * row
    moved = 2 * sectors(cached) + 2 * kept
    moved += ADMITTED
    return Bytes(floor, moved, moved)


def bus(fmt: Format, dim: int, optimizer: Optimizer, *, cached: bool) -> float:
    """Return the bytes on the bus of a row's training step, for a table in host memory.

    The forward reads the row; the update reads and writes the row and its states. A slot of the
    cache holds all of that in the device's memory.
    """
    if cached:
        return 0
    return sectors(fmt.row(dim)) + 2 * record(fmt, dim, optimizer)


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
    unique = 4 + 2 * POSITION + OFFSET + KEY
    moved = load + sort + unique
    return Bytes(floor, moved, moved)


def sketch() -> Bytes:
    """Estimate a missing row's count in the sketch and raise it."""
    moved = 3 * 4 * SECTOR + 2 * 4  # four cells, read once and changed once
    return Bytes(moved, moved, moved)


def scatter() -> Bytes:
    """Give each lookup the slot of its row; a row is a lookup."""
    floor = POSITION + 2 * SLOT
    # Slots are written at random places; the search reads starts.
    return Bytes(floor, floor + OFFSET, floor - SLOT + SECTOR + OFFSET)


def prepare(pool: int = POOL) -> Bytes:
    """Turn an index into a linear row id and its bag; a row is a lookup."""
    floor = 8 + KEY + BAG
    return Bytes(floor, floor, floor + OFFSET / pool)  # the L2 cache has the ends of bags


def bags() -> Bytes:
    """Read where a bag ends in the batch, and write where it ends in the group."""
    return Bytes(2 * OFFSET, 2 * OFFSET, 3 * OFFSET)  # and where the one before it ends
