"""The operations of the page: their kernels, loops and bytes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from mpembed_gpu import sass, traffic
from mpembed_gpu.flow import Trips, blocks_of, longest
from mpembed_gpu.latency import waits
from mpembed_gpu.model import Path
from mpembed_gpu.sass import Instruction
from mpembed_gpu.traffic import POOL, Bytes, Format

DIMS = (16, 64, 128)
_LOAD, _COLUMNS = r"LDG|LD\.", 8
_LOAD_FP32, _STORE_FP32, _STORE_NARROW = r"(LDG|LD)\.E$", r"(STG|ST)\.E$", r"(STG|ST)\.E\.U"
_ONE_TABLE = Trips(0, r"LDG?\.E\.64", needs=r"LDG?\.E\.64")  # the search for a row's table
_STATISTICS = "ATOM|RED"  # a warp's counts go to memory where the next row has another table
_BAGS = 1 << 16  # of a batch: what the search for a lookup's bag halves


@dataclass(frozen=True)
class Scenario:
    """An operation on rows of a dimension.

    `kernel` is the beginning of the kernel's name, `rules` say how often its loops are taken,
    `rows` how many rows a warp does. A `probe` compiles the file for one format, so that only this
    format's path is left; where the format is a template argument there is no need.
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
    memory: float | None = None  # how often a warp waits for memory, not the L2 cache; None: always

    def path(self, fmt: Format, dim: int, code: list[Instruction]) -> Path:
        """Return what a warp does."""
        rules = (*self.rules(fmt, dim), _ONE_TABLE)
        steps = longest(blocks_of(code), rules, self.prefer, self.avoid)
        units = Counter(sass.unit(one.opcode) for one in steps)
        return Path(dict(units), waits(steps), self.rows(dim), self.memory)


def tile(dim: int) -> int:
    """Return the lanes that own a row in all kernels but the forward."""
    return 8 if dim <= 8 else 16 if dim <= 16 else 32


def per_lane(dim: int) -> int:
    """Return the columns a lane has then."""
    return -(-dim // tile(dim))


def bag_lanes(dim: int) -> int:
    """Return the lanes that own a bag in the forward."""
    lanes = 1
    while lanes < 32 and lanes * _COLUMNS < dim:
        lanes *= 2
    return lanes


def _forward_rules(fmt: Format, dim: int) -> tuple[Trips, ...]:
    # A stored value costs an FFMA in the sum and, with a scale, one to decode.
    per_column = 2 if fmt.header else 1
    return (Trips(POOL * _COLUMNS * per_column, "FFMA", _LOAD),)


def _columns(depth: int | None, warp: bool = False) -> Callable[[Format, int], tuple[Trips, ...]]:
    """Return rules for loops over the columns of a row, `depth` deep in a loop over rows.

    An FP32 column is one load or store, a narrow one may be several, of which some are left out.
    """

    def rules(_: Format, dim: int) -> tuple[Trips, ...]:
        n = -(-dim // 32) if warp else per_lane(dim)
        rows = (Trips(32, depth=0), Trips(1, depth=1))[: depth or 0]
        encode = Trips(n, _LOAD_FP32, needs=_STORE_NARROW, depth=depth)
        decode = Trips(n, _STORE_FP32, needs=_STORE_FP32, depth=depth)
        return (*rows, encode, decode, Trips(n, _LOAD_FP32, needs=_LOAD_FP32, depth=depth))

    return rules


def _update(optimizer: str, cpp_type: str) -> Scenario:
    return Scenario(
        f"backward and update, {optimizer}",
        "update",
        lambda _, dim: f"update_kernel<{cpp_type}, {tile(dim)}, {per_lane(dim)}",
        partial(traffic.update, optimizer=optimizer),
        lambda _, dim: (Trips(per_lane(dim), "FFMA", needs=_LOAD),),
        lambda dim: 32 / tile(dim),
        prefer="FFMA|SHFL",  # few rows are hot: the path of those that are is not this one
        # The row, and its state: what leads there is read in order or shared by many rows.
        memory=1 if optimizer == "sgd" else 2,
    )


SCENARIOS = (
    Scenario(
        "forward, sum of 20",
        "lookup",
        lambda *_: "bags_kernel<true",
        traffic.forward,
        _forward_rules,
        lambda dim: 32 / bag_lanes(dim) * POOL,
    ),
    _update("sgd", "Sgd"),
    _update("rowwise_adagrad", "RowwiseAdagrad"),
    _update("adagrad", "Adagrad"),
    Scenario(
        "admission in the place of a dirty row, LRU",
        "cache",
        lambda *_: "admit_kernel<Lru",
        traffic.admit,
        _columns(depth=2, warp=True),
        lambda _: 32,
        avoid=_STATISTICS,
    ),
    Scenario(
        "flush of a dirty row",
        "cache",
        lambda *_: "flush_kernel",
        traffic.flush,
        _columns(depth=1, warp=True),
        lambda _: 32,
        avoid=_STATISTICS,
    ),
    Scenario(
        "quantize",
        "convert",
        lambda fmt, dim: f"quantize_kernel<{fmt.type}, {tile(dim)}",
        traffic.convert,
        _columns(depth=None),
        lambda dim: 32 / tile(dim),
        probe=False,
    ),
    Scenario(
        "dequantize",
        "convert",
        lambda fmt, dim: f"dequantize_kernel<{fmt.type}, {tile(dim)}",
        traffic.convert,
        _columns(depth=None),
        lambda dim: 32 / tile(dim),
        probe=False,
    ),
)


def _lookup(
    title: str,
    family: str,
    kernel: str,
    moved: Bytes,
    rules: tuple[Trips, ...],
    memory: float | None,
) -> Scenario:
    """Return an operation on a batch's lookups or unique rows, a lane each."""
    return Scenario(
        title,
        family,
        lambda *_: kernel,
        lambda *_: moved,
        lambda *_: rules,
        lambda _: 32,
        probe=False,
        memory=memory,
    )


def _search(steps: int) -> tuple[Trips, ...]:
    return (Trips(steps, "LDG", needs="LDG"),)


# What a batch costs whatever its format. CUB's sort and selection are counted in bytes alone.
BATCH = (
    _lookup(
        "linear row ids and bags (`prepare`)",
        "prepare",
        "keys_kernel",
        traffic.prepare(),
        _search(_BAGS.bit_length()),
        memory=1,
    ),
    _lookup("unique rows (`dedup`)", "dedup", "", traffic.dedup(), (), memory=None),
    _lookup(
        "looking unique rows up in the cache",
        "cache",
        "find_kernel<Lru",
        traffic.find(),
        (Trips(32, depth=0), Trips(1, depth=1)),  # a row after the other, then its ways
        memory=None,
    ),
    _lookup(
        "slots of lookups (`scatter_slots`)",
        "cache",
        "scatter_kernel",
        traffic.scatter(),
        _search((_BAGS * POOL).bit_length()),
        memory=1,
    ),
)
