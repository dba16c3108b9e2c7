"""The batches of the whole step, and what the cache makes of them, counted by the CPU's kernels.

A device's cache does the same with the same calls, so its counts are these.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

BATCH, TABLES, DIM = 1 << 16, 26, 128
ROWS = (1_000_000, 10_000_000)  # of the smallest and the largest table, spaced evenly in logarithm
EXPONENT, SEED = 1.05, 0
BLOCK = 64  # lookups of a row that are summed in one block
SETS_OF_WARP = 4  # of an admission
Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Setting:
    """How the tables are stored; `steps`: batches before the one that is counted, by lookups."""

    precision: str
    load_factor: float
    policy: str
    steps: Mapping[int, int]

    @property
    def name(self) -> str:
        """Return what the page calls it."""
        return f"{self.precision}, {100 * self.load_factor:.0f} % {self.policy.upper()}"


SETTINGS = (
    Setting("int8", 0.05, "lru", {1: 60, 20: 8}),
    Setting("int4", 0.01, "lfu", {1: 60, 20: 12}),
)
LOOKUPS = (1, 20)  # of a bag


@dataclass(frozen=True)
class Counts:
    """What one batch costs: lookups and rows of all tables.

    `hits`, `misses`: unique rows that the cache had or had not. `admitted`: misses that got a slot,
    `written`: the dirty rows that made room. `cached`: unique rows in the cache after that, and
    `cached_lookups` theirs. `few` rows have 2 to 64 lookups, `many` have more, of which
    `cached_many_lookups` are of rows in the cache. `hit_lookups` and `hit_many_lookups` are of rows
    that it had before. `missed_sets`: sets with misses. `rounds`: how often all warps of an
    admission look for a way, each for four such sets at once, until the fullest of them is done.
    """

    lookups: int
    unique: int
    hits: int
    misses: int
    admitted: int
    written: int
    cached: int
    cached_lookups: int
    few: int
    few_lookups: int
    many: int
    many_lookups: int
    cached_many_lookups: int
    hit_lookups: int
    hit_many_lookups: int
    missed_sets: int
    rounds: int
    slots: int

    @property
    def once(self) -> int:
        """Rows with one lookup."""
        return self.unique - self.few - self.many


def table_rows(tables: int = TABLES, rows: tuple[int, int] = ROWS) -> list[int]:
    """Return the rows of each table."""
    low, high = map(math.log, rows)
    return [round(math.exp(low + (high - low) * t / (tables - 1))) for t in range(tables)]


def draw(rng: np.random.Generator, rows: int, n: int) -> Array:
    """Return n row numbers: the k-th most frequent row has the weight of x^-1.05 in [k, k + 1)."""
    power = 1 - EXPONENT
    x = (1 + rng.random(n) * ((rows + 1) ** power - 1)) ** (1 / power)
    rank: Array = np.minimum(x.astype(np.int64), rows) - 1
    rank *= _step(rows)
    rank %= rows
    return rank


def _step(rows: int) -> int:
    """Return a factor that spreads frequent rows over the table."""
    step = round(rows * 0.6180339887)
    while math.gcd(step, rows) != 1:
        step += 1
    return step


def expected_unique(rows: int, n: int) -> float:
    """Return how many rows of a table n draws have on average."""
    power = 1 - EXPONENT
    edges = np.arange(1, rows + 2, dtype=np.float64) ** power
    chance = (edges[:-1] - edges[1:]) / (edges[0] - edges[-1])
    return float(-np.expm1(n * np.log1p(-chance)).sum())


def batches(pool: int, rows: list[int], batch: int = BATCH) -> Iterator[Array]:
    """Yield the indices of batches, table by table; bags have `pool` lookups."""
    rng = np.random.default_rng(SEED)
    while True:
        yield np.concatenate([draw(rng, count, batch * pool) for count in rows])


def simulate(
    setting: Setting, pool: int, rows: list[int] | None = None, batch: int = BATCH
) -> Counts:
    """Train some batches on the CPU, and count what the next one does."""
    import mpembed as mpe

    rows = table_rows() if rows is None else rows
    tables = [
        mpe.TableConfig(f"t{i}", count, 1, setting.precision, init="zeros")
        for i, count in enumerate(rows)
    ]
    cache = mpe.CacheConfig(load_factor=setting.load_factor, policy=setting.policy)
    emb = mpe.EmbeddingBagCollection(tables, cache=cache, optimizer=mpe.SGD(lr=1e-3))
    offsets = np.arange(0, len(rows) * batch * pool + 1, pool)
    grad = np.ones((batch, len(rows)), np.float32)
    before: dict[str, int] = {}
    for step, indices in enumerate(batches(pool, rows, batch)):
        held = _tags(emb).copy() if step == setting.steps[pool] else None
        emb.forward(indices, offsets)
        emb.backward(grad)
        now = _totals(emb)
        if held is not None:
            did = {name: now[name] - before[name] for name in now}
            return _counts(held, _tags(emb), rows, indices, did)
        before = now
    raise AssertionError


def _totals(emb: Any) -> dict[str, int]:
    stats = list(emb.stats().values())
    return {name: sum(one[name] for one in stats) for name in stats[0]}


def _tags(emb: Any) -> Array:
    from mpembed.collection import collection_state

    (tags,) = (a for n, a in collection_state(emb).arrays().items() if n.endswith(".tags"))
    return np.asarray(tags.memory)


def _counts(
    before: Array, after: Array, rows: list[int], indices: Array, step: dict[str, int]
) -> Counts:
    from mpembed import ops

    bases = np.repeat(np.cumsum([0, *rows[:-1]]), len(indices) // len(rows))
    keys, counts = np.unique(indices + bases, return_counts=True)
    slots = ops.cache_lookup(after, keys)
    hit, cached = ops.cache_lookup(before, keys) >= 0, slots >= 0
    sets = _sets(keys, len(after))
    assert np.array_equal(sets[cached], slots[cached] // after.shape[1])
    missed_sets, rounds = _rounds(sets[~hit], cached[~hit])
    few, many = (counts > 1) & (counts <= BLOCK), counts > BLOCK
    assert len(keys) == step["unique"]
    return Counts(
        lookups=len(indices),
        unique=len(keys),
        hits=step["hits"],
        misses=step["misses"],
        admitted=step["misses"] - step["conflict_misses"] - step["rejected"],
        written=step["write_backs"],
        cached=int(cached.sum()),
        cached_lookups=int(counts[cached].sum()),
        few=int(few.sum()),
        few_lookups=int(counts[few].sum()),
        many=int(many.sum()),
        many_lookups=int(counts[many].sum()),
        cached_many_lookups=int(counts[many & cached].sum()),
        hit_lookups=int(counts[hit].sum()),
        hit_many_lookups=int(counts[many & hit].sum()),
        missed_sets=missed_sets,
        rounds=rounds,
        slots=after.size,
    )


def _sets(keys: Array, num_sets: int) -> Array:
    """Return the cache sets of linear row ids (docs/numerics.md, section 6)."""
    z = keys.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    high = (z ^ (z >> np.uint64(31))) >> np.uint64(32)
    return (high * np.uint64(num_sets) >> np.uint64(32)).astype(np.int64)


def _rounds(sets: Array, admitted: Array) -> tuple[int, int]:
    """Return the sets with misses, and the rounds of warps that have four of them.

    A set has a round for each way that it gives, and one that finds none where misses are left.
    """
    _, first, each, misses = np.unique(
        sets, return_index=True, return_inverse=True, return_counts=True
    )
    ways = np.bincount(each, weights=admitted).astype(np.int64)
    rounds = (ways + (ways < misses))[np.argsort(first)]  # as their first misses come
    rounds = np.append(rounds, np.zeros(-len(rounds) % SETS_OF_WARP, np.int64))
    return len(misses), int(rounds.reshape(-1, SETS_OF_WARP).max(axis=1).sum())


def write(path: Path) -> None:
    """Count the batches of every setting and keep them in a file."""
    found = {
        setting.name: {str(pool): asdict(simulate(setting, pool)) for pool in LOOKUPS}
        for setting in SETTINGS
    }
    path.write_text(json.dumps(found, indent=1) + "\n")


def read(path: Path) -> dict[tuple[str, int], Counts]:
    """Return the counts of a file by setting and lookups of a bag."""
    return {
        (name, int(pool)): Counts(**counts)
        for name, pools in json.loads(path.read_text()).items()
        for pool, counts in pools.items()
    }
