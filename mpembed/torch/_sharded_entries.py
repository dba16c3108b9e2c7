"""A collection's tables as entries of a ``state_dict`` for ``torch.distributed.checkpoint``.

Rows and states of a whole table are entries by row: DTensors where ranks hold parts of it, plain
tensors where one rank has all. What the cache holds of a shard, and its counts, are entries of the
shard alone, whose names say which rows it has: so ranks need not ask each other for sizes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, MutableMapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard
from torch.distributed.tensor._shards_wrapper import LocalShardsWrapper

from mpembed._bindings.device import Stream
from mpembed._checkpoint import strict_json
from mpembed._checkpoint.shard_loading import SavedTable, load_shards
from mpembed._checkpoint.shards import CachedRows, read_shards
from mpembed._checkpoint.shards import Shard as TableShard
from mpembed._collection.records import StoredArray
from mpembed._collection.storage import table_fields
from mpembed.collection import EmbeddingBagCollection, collection_state
from mpembed.config import TableConfig
from mpembed.load_report import LoadReport
from mpembed.torch._sharded_names import (
    ABOUT,
    CACHED_ROWS,
    CACHED_STATE,
    IDS,
    SKETCH,
    SLOTS,
    ShardKey,
    array_key,
    total_rows,
)

Values = npt.NDArray[Any]


def entries(
    collection: EmbeddingBagCollection, names: Mapping[str, str], mesh: DeviceMesh | None
) -> dict[str, Tensor]:
    """Return what ``mpembed.torch.sharded.state_dict`` does."""
    found = {}
    for config, own in _local_entries(collection, names):
        for key, value in own.items():
            of_shard = ShardKey.parsed(key) is not None
            found[key] = value if of_shard else _placed(value, config, mesh)
    return found


def _local_entries(
    collection: EmbeddingBagCollection, names: Mapping[str, str]
) -> list[tuple[TableConfig, dict[str, Tensor]]]:
    """Return the entries of each table; those by row have its own rows."""
    state, found = collection_state(collection), []
    with state.reading() as on:
        shards = read_shards(state, on)
        for config, records, shard in zip(
            collection.tables, state.storage.tables, shards, strict=True
        ):
            name = names[config.name]
            own = _shard_entries(name, shard)
            if config.num_embeddings > 0 or total_rows(config) == 0:  # else others have the rows
                for field, stored in zip(records.fields, records.arrays(), strict=True):
                    own[array_key(name, config, field.name)] = _tensor(stored, on)
            found.append((config, own))
    return found


def _tensor(stored: StoredArray, on: Stream) -> Tensor:
    """Return an array as a tensor: its own memory where that is possible, else a copy."""
    values = stored.strided()
    if values is None:
        values = stored.whole(on)  # of a device, or of unaligned records: a copy
    if values.dtype == np.uint16:  # PyTorch has no arithmetic for it; these are bf16
        return torch.from_numpy(values.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(values)


def _placed(local: Tensor, config: TableConfig, mesh: DeviceMesh | None) -> Tensor:
    """Return rows of a shard as what they are of the whole table."""
    first, count, total = config.first_row, config.num_embeddings, total_rows(config)
    if count == total:
        return local
    if mesh is None:
        raise ValueError(
            f"table {config.name!r} has rows {first} .. {first + count} of {total}: pass the "
            "process group whose ranks have the others"
        )
    even = -(-total // mesh.size())
    begin = min(mesh.get_local_rank() * even, total)
    if (first, count) != (begin, min(even, total - begin)):  # not as Shard(0) splits
        local = LocalShardsWrapper([local], [(first,) + (0,) * (local.ndim - 1)])
    shape = torch.Size((total, *local.shape[1:]))
    stride = torch.empty(shape, device="meta").stride()
    return DTensor.from_local(local, mesh, [Shard(0)], run_check=False, shape=shape, stride=stride)


def _shard_entries(name: str, shard: TableShard) -> dict[str, Tensor]:
    cached = shard.cached
    about = np.frombuffer(json.dumps(shard.about).encode(), np.uint8).copy()
    found: dict[str, Values] = {
        ABOUT: about,
        IDS: cached.ids,
        CACHED_ROWS: cached.rows,
        SLOTS: cached.slots,
    }
    found |= {CACHED_STATE + state: values for state, values in cached.states.items()}
    if shard.sketch is not None:
        found[SKETCH] = shard.sketch
    return {
        str(ShardKey(name, shard.first, shard.end, kind)): torch.from_numpy(values)
        for kind, values in found.items()
    }


# ---- back ---------------------------------------------------------------------------------------


def tables_in(given: Iterable[str]) -> set[str]:
    """Return the tables of which a state has shards."""
    return {one.table for one in map(ShardKey.parsed, given) if one is not None}


def pop_tables(given: MutableMapping[str, Any], prefix: str) -> dict[str, Any]:
    """Take the entries of all sharded tables whose names begin with a prefix out of a state."""
    tables = [name for name in tables_in(given) if name.startswith(prefix)]
    own = tuple(f"{name}." for name in tables)
    return {key: given.pop(key) for key in list(given) if key.startswith(own)}


def load(
    collection: EmbeddingBagCollection,
    names: Mapping[str, str],
    given: Mapping[str, Any],
    *,
    partial: bool = False,
) -> LoadReport:
    """Do what ``mpembed.torch.sharded.load_state_dict`` does."""
    known = tables_in(given)
    left = {own: name for own, name in names.items() if name not in known}
    if left and not partial:
        raise ValueError(f"the state has no table {min(left.values())!r}")
    if left:  # these are given what they have
        for config, own in _local_entries(collection, names):
            given = {**own, **given} if config.name in left else given
    by_table: dict[str, dict[tuple[int, int], dict[str, Any]]] = {}
    for key, value in given.items():
        one = ShardKey.parsed(key)
        if one is not None:
            shards = by_table.setdefault(one.table, {})
            shards.setdefault((one.first, one.end), {})[one.kind] = value
    state, tables = collection_state(collection), []
    for config, optimizer in zip(collection.tables, state.settings.optimizers, strict=True):
        name = names[config.name]
        arrays = {}
        for field in table_fields(config, optimizer):
            key = array_key(name, config, field.name)
            if key in given:
                arrays[field.name] = _array(key, given[key], field.dtype)
        shards = by_table[name]
        tables.append(SavedTable(arrays, [_shard(name, *rows, of) for rows, of in shards.items()]))
    return load_shards(state, tables)


def _shard(name: str, first: int, end: int, given: Mapping[str, Any]) -> TableShard:
    missing = [kind for kind in (ABOUT, IDS, CACHED_ROWS, SLOTS) if kind not in given]
    if missing:
        raise ValueError(f"the state has no {ShardKey(name, first, end, missing[0])}")
    found = {kind: _array(str(ShardKey(name, first, end, kind)), v) for kind, v in given.items()}
    try:
        about = strict_json.parse(found[ABOUT].tobytes().decode())
    except ValueError as error:
        raise ValueError(f"{ShardKey(name, first, end, ABOUT)} is damaged: {error}") from None
    states = {
        kind.removeprefix(CACHED_STATE): values
        for kind, values in found.items()
        if kind.startswith(CACHED_STATE)
    }
    cached = CachedRows(found[IDS], found[CACHED_ROWS], states, found[SLOTS])
    return TableShard(first, end, about, cached, found.get(SKETCH))


def local_part(given: Any) -> Any:
    """Return what this rank has of an entry; a DTensor itself may say another type of values."""
    local = given.to_local() if isinstance(given, DTensor) else given
    if isinstance(local, LocalShardsWrapper):
        (local,) = local.local_shards()
    return local


def _array(key: str, given: Any, dtype: np.dtype[Any] | None = None) -> Values:
    """Return an entry's values; bf16 ones as the bits that a table has."""
    local = local_part(given)
    if not isinstance(local, Tensor):
        raise ValueError(f"{key} of the state is {type(given).__name__}, not a tensor")
    held = local.detach().cpu()
    if held.dtype == torch.bfloat16 and dtype == np.uint16:
        bits: Values = held.view(torch.int16).numpy().view(np.uint16)
        return bits
    values: Values = held.numpy()
    return values
