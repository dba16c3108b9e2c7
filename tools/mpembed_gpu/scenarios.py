"""The operations of the page: their kernels, loops and bytes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from mpembed_gpu import registry, sass, traffic
from mpembed_gpu.flow import Trips, blocks_of, longest
from mpembed_gpu.latency import waits
from mpembed_gpu.model import Path
from mpembed_gpu.registry import Format, Optimizer, Policy
from mpembed_gpu.sass import Instruction
from mpembed_gpu.traffic import POOL, Bytes
from mpembed_gpu.workload import SETS_OF_WARP, TABLES

DIMS = (16, 64, 128)
_LOAD, _COLUMNS = r"LDG|LD\.", 8
_STORE = r"(STG|ST)\."
_ONE_TABLE = Trips(0, r"LDG?\.E\.64", needs=r"LDG?\.E\.64")  # the search for a row's table
_STATISTICS = r"ATOM|REDG?\."  # once per table among 32 rows
_BAGS = 1 << 16  # of a batch; the search for a lookup's bag halves them
_POLICY = registry.POLICIES[0]  # policies differ little


@dataclass(frozen=True)
class Sometimes:
    """Loops that are taken in a share of the cases, not at all in the others."""

    share: float
    rule: Trips

    def trips(self, times: int) -> Trips:
        """Return the rule for one case."""
        return replace(self.rule, total=times * self.rule.total)


# Codes that are computed anew (kernels/cuda/codes.cuh): a draw comes near one code in 2048, so a
# warp takes this loop for one chunk of its lanes' columns in nine.
_ANEW = Sometimes(1 - (1 - 1 / 2048) ** (32 * _COLUMNS), Trips(1, needs="FCHK", without=_STORE))


@dataclass(frozen=True)
class Scenario:
    """An operation on rows of a dimension.

    `kernel` begins the kernel's name, `rules` say how often its loops are taken, `rows` how many
    rows a warp processes. With `probe` the file is compiled for one format, so that no other
    format's path is left; kernels with the format as a template argument do not need it.
    """

    title: str
    family: str
    kernel: Callable[[Format, int], str]
    bytes: Callable[[Format, int], Bytes]
    rules: Callable[[Format, int], tuple[Trips, ...]]
    rows: Callable[[int], float]
    probe: bool = True
    prefer: str = ""
    avoid: str = ""
    memory: Callable[[int], float] | None = None  # waits for memory, not the L2 cache; None: all
    sometimes: Sometimes = _ANEW

    def path(self, fmt: Format, dim: int, code: list[Instruction]) -> Path:
        """Return what a warp does."""
        rules, blocks = (*self.rules(fmt, dim), _ONE_TABLE), blocks_of(code)

        def steps(times: int) -> list[Instruction]:
            rule = self.sometimes.trips(times)
            return longest(blocks, (*rules, rule), self.prefer, self.avoid)

        without, with_it, share = steps(0), steps(1), self.sometimes.share
        units, more = (
            Counter(sass.unit(one.opcode) for one in some) for some in (without, with_it)
        )
        mean = {unit: units[unit] + share * (n - units[unit]) for unit, n in more.items()}
        usual = with_it if share > 0.5 else without
        memory = None if self.memory is None else self.memory(dim)
        return Path(mean, waits(usual), self.rows(dim), memory)


def lanes(dim: int) -> int:
    """Return the lanes that share a row, or a bag in the forward."""
    found = 1
    while found < 32 and found * _COLUMNS < dim:
        found *= 2
    return found


def _bags(pool: int) -> int:
    """Return how many bags a tile sums one after the other (`bags_of_run` in lookup.cu)."""
    run = 16
    while run > 1 and run * pool > 128:
        run //= 2
    return run


def forward(pool: int, value: int) -> Scenario:
    """Return the forward of bags with `pool` lookups, whose outputs have `value` bytes an element.

    A loop inside that over the lookups ends a bag.
    """
    lookups = _bags(pool) * pool

    def rules(fmt: Format, _: int) -> tuple[Trips, ...]:
        # A stored value costs an FFMA in the sum and, with a scale, one to decode.
        return (Trips(lookups * _COLUMNS * (2 if fmt.header else 1), "FFMA", _LOAD, depth=0),)

    return Scenario(
        f"forward, sum of {pool}",
        "lookup",
        lambda fmt, _: f"bags_kernel<{fmt.type}, 8",
        partial(traffic.forward, pool=pool, value=value),
        rules,
        lambda dim: 32 / lanes(dim) * lookups,
        probe=False,
        avoid="FCHK",  # the division of a mean
        # Two rows are in flight; what leads to rows of bags of one is read in order.
        memory=(lambda _: lookups / 2) if pool == 1 else None,
        # Both rows of a round may end a bag, which has two stores.
        sometimes=Sometimes(1 / pool, Trips(2 * 2, _STORE, depth=1)),
    )


def _range(_: Format, dim: int) -> Trips:
    """Return the rule for the steps that find a row's smallest and largest value."""
    return Trips(2 * (lanes(dim).bit_length() - 1), "SHFL", needs="SHFL", without=_STORE)


def _one_row(fmt: Format, dim: int) -> tuple[Trips, ...]:
    """Return rules for a tile that has one row."""
    return (_range(fmt, dim),)


def _rows_of_warp(fmt: Format, dim: int) -> tuple[Trips, ...]:
    """Return rules for a warp with 32 rows, of which each tile takes one at a time."""
    return (Trips(lanes(dim), needs=_STORE, depth=0), _range(fmt, dim))


def update(optimizer: Optimizer, pool: int = POOL, value: int = 4) -> Scenario:
    """Return the update of rows with one lookup, of a gradient with `value` bytes an element."""
    return Scenario(
        f"backward and update, {optimizer.name}",
        "update_short",
        lambda *_: f"update_kernel<{optimizer.type}, false",
        partial(traffic.update, optimizer=optimizer, pool=pool, value=value),
        _rows_of_warp,
        lambda _: 32,
        prefer="FFMA|SHFL",  # not the path of hot rows, which are few
        # Each row, then its states of a value an element; what leads to them is read in order or
        # shared by many rows.
        memory=lambda dim: lanes(dim) * (2 if any(one.element for one in optimizer.states) else 1),
    )


def occurrences(pool: int, value: int) -> Scenario:
    """Return the sums of gradients of rows with many lookups; a row is a lookup."""
    block = 64  # lookups of a tile, of which each lane finds one at a time

    def rules(_: Format, dim: int) -> tuple[Trips, ...]:
        inner = Trips(lanes(dim) * _COLUMNS, "FFMA", needs="SHFL", depth=1)
        return (Trips(block // lanes(dim), needs="LDG", depth=0), inner)

    return Scenario(
        "gradients of more lookups",
        "update_short",
        lambda *_: "partials_kernel<false",
        lambda _, dim: traffic.occurrence(dim, pool, value),
        rules,
        lambda dim: 32 / lanes(dim) * block,
        # Positions are read in order; the L2 cache has a bag's gradient for its other lookups.
        memory=None if pool == 1 else lambda dim: block // lanes(dim),
    )


def move(optimizer: Optimizer | None = None) -> Scenario:
    """Return the rows of an admission in the place of a dirty row."""
    return Scenario(
        "admission in the place of a dirty row: the rows",
        "cache",
        lambda *_: "move_kernel<false",
        partial(traffic.move, optimizer=optimizer),
        _rows_of_warp,
        lambda _: 32,
        avoid=_STATISTICS,
    )


SCENARIOS = (
    forward(POOL, 4),
    *map(update, registry.KINDS),
    move(),
    Scenario(
        "flush of a dirty row",
        "cache",
        lambda *_: "flush_kernel<false",
        traffic.flush,
        _rows_of_warp,
        lambda _: 32,
        avoid=_STATISTICS,
    ),
    Scenario(
        "quantize",
        "convert",
        lambda fmt, _: f"quantize_kernel<{fmt.type}, false",
        traffic.convert,
        _one_row,
        lambda dim: 32 / lanes(dim),
        probe=False,
    ),
    Scenario(
        "dequantize",
        "convert",
        lambda fmt, _: f"dequantize_kernel<{fmt.type}, false",
        traffic.convert,
        _one_row,
        lambda dim: 32 / lanes(dim),
        probe=False,
    ),
)


def _lookup(
    title: str,
    family: str,
    kernel: str,
    moved: Bytes,
    rules: tuple[Trips, ...],
    memory: int | None,
    prefer: str = "",
    rows: int = 32,
    avoid: str = "",
) -> Scenario:
    """Return an operation on a batch's lookups or unique rows, one per lane."""
    return Scenario(
        title,
        family,
        lambda *_: kernel,
        lambda *_: moved,
        lambda *_: rules,
        lambda _: rows,
        probe=False,
        prefer=prefer,
        avoid=avoid,
        memory=None if memory is None else lambda _: memory,
    )


_POSITIONS = 256  # lookups for which a warp searches once


def _search(ranges: int) -> tuple[Trips, ...]:
    """Return rules for one search, then rounds of 32 lookups whose ranges a warp reads at once."""
    steps = 0
    while ranges > 0:  # as warp_first_at_least has it
        ranges, steps = -(-ranges // 32) - 1, steps + 1
    rounds = Trips(_POSITIONS // 32, needs=_STORE, depth=0)
    search = Trips(steps, needs="LDG", without=_STORE, depth=0)
    return (rounds, Trips(1, needs="SHFL", depth=1), search)


def prepare(pool: int = POOL) -> Scenario:
    """Return what a lookup's key and bag cost; warps of their own write where bags end."""
    return _lookup(
        "linear row ids and bags (`prepare`)",
        "prepare",
        "keys_kernel",
        traffic.prepare(pool),
        _search(TABLES * _BAGS),
        memory=_POSITIONS // 32,
        rows=_POSITIONS,
        prefer="SHFL",
        avoid=r"LDG\.E\.64\.STRONG",  # the last block's end
    )


def bags() -> Scenario:
    """Return what it costs to write where a bag ends."""
    return _lookup(
        "ends of bags (`prepare`)",
        "prepare",
        "keys_kernel",
        traffic.bags(),
        (),
        memory=2,  # of both ends at once, and of the table
        rows=_POSITIONS,
        avoid=r"SHFL|LDG\.E\.64\.STRONG",
    )


def find(policy: Policy) -> Scenario:
    """Return what it costs to look a unique row up in the cache."""
    return _lookup(
        "looking unique rows up in the cache",
        "cache",
        f"find_kernel<{policy.type}",
        traffic.find(),
        (Trips(32 // 4, depth=0), Trips(1, depth=1)),  # four rows at a time, then their ways
        memory=None,
    )


SET_LANES = 32 // SETS_OF_WARP  # that have a set in an admission


def choose(policy: Policy, ways: int = 1, left: int = 0) -> Scenario:
    """Return what it costs to give so many ways of a set to missing rows.

    The set has one miss. left: how often eight misses are counted that got no way.
    """
    return _lookup(
        f"admission: ways for missing rows, {policy.name.upper()}",
        "cache",
        f"admit_kernel<{policy.type}",
        traffic.choose(),
        (
            Trips(ways, needs="SHFL", depth=0),
            Trips(left, needs="MATCH", depth=0),
            Trips(1, needs="LDG", without="SHFL|VOTE|ATOM", depth=0),  # the list
            Trips(4 * 3, "LDG", needs="ATOM", depth=1),  # a miss's four cells of the sketch
        ),
        memory=None,
        rows=SETS_OF_WARP,
        prefer="MATCH",
    )


DEDUP = _lookup("unique rows (`dedup`)", "dedup", "", traffic.dedup(), (), memory=None)
SCATTER = _lookup(
    "slots of lookups (`scatter_slots`)",
    "cache",
    "scatter_kernel",
    traffic.scatter(),
    _search(_BAGS * POOL),
    memory=_POSITIONS // 32,
    rows=_POSITIONS,
)
# What a batch costs in any format. CUB's sort and selection are counted in bytes only.
BATCH = (prepare(), bags(), DEDUP, find(_POLICY), choose(_POLICY), SCATTER)
