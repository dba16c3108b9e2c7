"""Checks of saved shards, which come from elsewhere, before anything of a collection changes."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from mpembed import registry
from mpembed._arguments.scalars import integer
from mpembed._bindings import contract, kernels
from mpembed._checkpoint.shards import DIRTY, FORMAT, META, SLOT, CachedRows, Shard, shapes
from mpembed._collection.state_checks import first_unstorable
from mpembed.config import TableConfig
from mpembed.optim import Optimizer

_COUNTERS = {"step", "updates"}
_FIELDS = {"format", "seed", "stats", "noise", "cache"} | _COUNTERS
_CACHE_FIELDS = {"policy", "num_sets", "ways", "counters", "tables"}


def covering(first: int, end: int, shards: Sequence[Shard], name: str) -> list[Shard]:
    """Return the shards that hold rows [first, end) of a table, in their order.

    Raises
    ------
    ValueError
        If some of these rows are in none, or in two.
    """
    at = first
    found: list[Shard] = []
    for one in sorted(shards, key=lambda one: (one.first, one.end)):
        if one.end <= first or one.first >= end:
            continue
        if found and one.first < at:
            raise ValueError(f"table {name!r}: two shards of the state have row {one.first}")
        if one.first > at:
            break
        found.append(one)
        at = one.end
    if at < end:
        raise ValueError(
            f"table {name!r}: the state has no shard with row {at}: pass all shards that hold rows "
            f"{first} .. {end - 1}"
        )
    return found


def check_about(about: Any, where: str) -> None:
    """Raise ValueError unless this is what `read_shards` says of a shard."""
    try:
        _check_about(about)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: {error}") from None


def _check_about(about: Any) -> None:
    if not isinstance(about, dict):
        raise ValueError("what it says of the shard is not an object")
    if about.get("format") != FORMAT:
        raise ValueError(f"it has format {about.get('format')!r}; this version reads {FORMAT}")
    if set(about) != _FIELDS:
        raise ValueError(f"it has {sorted(about)}, not {sorted(_FIELDS)}")
    step = integer("step", about["step"], 0, contract.MAX_STEP)
    integer("updates", about["updates"], 0, step)
    integer("seed", about["seed"], 0, contract.MAX_SEED)
    _check_counts("stats", about["stats"], 0)
    _check_counts("noise", about["noise"], -(2**63))
    if about["cache"] is not None:
        _check_cache(about["cache"])


def _check_counts(name: str, counts: Any, least: int) -> None:
    if not isinstance(counts, dict):
        raise ValueError(f"{name} is not an object")
    for key, count in counts.items():
        integer(f"{name}[{key!r}]", count, least, 2**63 - 1)


def _check_cache(cache: Any) -> None:
    if not isinstance(cache, dict) or set(cache) != _CACHE_FIELDS:
        raise ValueError(f"cache is not an object with {sorted(_CACHE_FIELDS)}")
    registry.choose("policy", cache["policy"], registry.POLICIES)
    integer("num_sets", cache["num_sets"], 1, contract.MAX_SETS)
    integer("ways", cache["ways"], contract.MIN_WAYS, contract.MAX_WAYS)
    if not isinstance(cache["counters"], list) or len(cache["counters"]) != 2:
        raise ValueError("the cache's counters are not two numbers")
    for count in cache["counters"]:
        integer("counters", count, 0, 2**64 - 1)
    samples = cache["counters"][1]
    most = contract.HALVING_PERIOD * cache["num_sets"] * cache["ways"]
    if samples >= (most if has_sketch(cache["policy"]) else 1):
        raise ValueError("the cache's counters have more samples than a cache counts")
    if not isinstance(cache["tables"], list):
        raise ValueError("the cache's tables are not a list")


def has_sketch(policy: str) -> bool:
    """Whether a policy counts in slots and a sketch; other policies keep the clock in slots."""
    return bool(kernels.policy_has_sketch(registry.POLICIES[policy]))


def check_cached(config: TableConfig, optimizer: Optimizer | None, shard: Shard) -> None:
    """Raise ValueError unless a shard's cached rows are such as training leaves."""
    where = f"table {config.name!r}: the cached rows of its rows {shard.first} .. {shard.end}"
    cached, dim = shard.cached, config.embedding_dim
    expected: dict[str, tuple[Any, tuple[int, ...]]] = {
        "ids": (np.int64, ()),
        "rows": (np.float32, (dim,)),
        "slots": (np.int64, (3,)),
    }
    given: dict[str, npt.NDArray[Any]]
    given = {"ids": cached.ids, "rows": cached.rows, "slots": cached.slots}
    expected |= {f"state {name}": (np.float32, shape) for name, shape in shapes(optimizer, dim)}
    given |= {f"state {name}": values for name, values in cached.states.items()}
    if set(given) != set(expected):
        raise ValueError(f"{where} have {sorted(given)}, not {sorted(expected)}")
    for name, (dtype, shape) in expected.items():
        values = given[name]
        if values.dtype != dtype or values.shape != (len(cached.ids), *shape):
            raise ValueError(
                f"{where}: {name} is {values.dtype}{list(values.shape)}, not {np.dtype(dtype)}"
                f"{[len(cached.ids), *shape]}"
            )
    _check_places(where, shard)
    _check_values(where, config.precision, cached)


def _check_places(where: str, shard: Shard) -> None:
    ids, slots = shard.cached.ids, shard.cached.slots
    if len(ids) == 0:
        return
    if ids.min() < shard.first or ids.max() >= shard.end:
        raise ValueError(f"{where} have a row of another shard")
    if len(np.unique(ids)) < len(ids):
        raise ValueError(f"{where} have a row twice")
    cache = shard.about["cache"]
    if cache is None:
        raise ValueError(f"{where} are of a shard without a cache")
    most = contract.MAX_COUNT if has_sketch(cache["policy"]) else 2**32 - 1
    limits = {SLOT: cache["num_sets"] * cache["ways"] - 1, DIRTY: 1, META: most}
    for column, limit in limits.items():
        if slots[:, column].min() < 0 or slots[:, column].max() > limit:
            raise ValueError(f"{where} have a slot, mark or count out of range")


def _check_values(where: str, precision: str, cached: CachedRows) -> None:
    parts: Mapping[str, tuple[npt.NDArray[Any], str]]
    parts = {"rows": (cached.rows, precision)}
    parts |= {name: (values, "fp32") for name, values in cached.states.items()}
    for name, (values, limit) in parts.items():
        if values.size == 0:
            continue
        wrong = first_unstorable(values.reshape(len(values), -1), limit)
        if wrong is not None:
            raise ValueError(
                f"{where}: {name} of row {cached.ids[wrong]} is not finite or exceeds the range of "
                f"{limit}"
            )
