"""A collection's state as tensors, for ``state_dict``, pickle and copies."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import torch

from mpembed._arguments.scalars import integer
from mpembed._bindings import contract
from mpembed._bindings.device import Stream
from mpembed._collection.records import StoredArray
from mpembed._collection.state import COUNTERS, Counters
from mpembed.collection import EmbeddingBagCollection, collection_state
from mpembed.torch._dense import why_not_dense

FORMAT = 4
Shape: TypeAlias = tuple[int, ...]


def _stored_type(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return a type that PyTorch does everything with: of unsigned ones it has bytes alone."""
    return np.dtype(f"i{dtype.itemsize}") if dtype.kind == "u" and dtype.itemsize > 1 else dtype


def _others(collection: EmbeddingBagCollection) -> dict[str, StoredArray]:
    """Return the arrays that are not a table's: those a state has under their own names."""
    arrays = collection_state(collection).arrays()
    return {name: one for name, one in arrays.items() if not name.startswith("table.")}


def _layout(collection: EmbeddingBagCollection) -> dict[str, Any]:
    """Return what a state and the collection that loads it must have in common."""
    settings, tables = collection_state(collection).settings, collection.tables
    cache = settings.cache
    return {
        "tables": [
            [t.num_embeddings, t.embedding_dim, t.precision, t.pooling]
            + [settings.table_id(number), t.first_row]
            + ([t.name] if len(tables) > 1 else [])
            for number, t in enumerate(tables)
        ],
        "cache": None if cache is None else [cache.policy, cache.ways],
        "optimizers": [
            "frozen"
            if one is None
            else [one.kind, one.weight_decay_mode, *(state.precision for state in one.states)]
            for one in settings.optimizers
        ],
    }


def _tensors(collection: EmbeddingBagCollection, on: Stream) -> dict[str, torch.Tensor]:
    """Return the arrays and counters: on the CPU the same memory, of a device copies.

    Those of a table go by its number, for its name may change: "records", of each row the bytes and
    those of its states of one value, and "states", the bytes of its states of a value an element.
    """
    state = collection_state(collection)
    found = {
        f"table.{number}.{name}": block
        for number, records in enumerate(state.storage.tables)
        for name, block in records.packed(on).items()
    }
    for name, stored in _others(collection).items():
        found[name] = stored.shared(on)
    tensors = {
        name: torch.from_numpy(array.view(_stored_type(array.dtype)))
        for name, array in found.items()
    }
    if on.device.synchronous:
        counts = state.counter_arrays()
        return {**tensors, **{name: torch.from_numpy(count) for name, count in counts.items()}}
    counters = state.counters(on).named()
    return {**tensors, **{name: torch.tensor([count]) for name, count in counters.items()}}


def state_of(collection: EmbeddingBagCollection) -> dict[str, Any]:
    """Return all that training changes, except the learning rates."""
    with collection_state(collection).reading() as on:
        return {
            "format": FORMAT,
            "layout": _layout(collection),
            "seed": collection_state(collection).settings.seed,
            "arrays": _tensors(collection, on),
        }


def load(collection: EmbeddingBagCollection, state: Any) -> None:
    """Continue from a state; ValueError if it does not fit, before anything changes."""
    check_settings(collection, state)
    seed = integer("seed of the state", state.get("seed"), 0, contract.MAX_SEED)
    with collection_state(collection).writing():
        arrays, counters = _checked_arrays(collection, state.get("arrays"))
        try:
            collection_state(collection).restore(arrays, counters, seed)
        except ValueError as error:
            raise ValueError(f"the state: {error}") from None


def check_settings(collection: EmbeddingBagCollection, state: Any) -> None:
    """Raise ValueError if a state is not of such a collection."""
    found = state.get("format") if isinstance(state, dict) else state
    if found != FORMAT:
        raise ValueError(f"the state has format {found!r}, this version reads {FORMAT}")
    layout, given = _layout(collection), state.get("layout")
    for part, own in layout.items():
        other = given.get(part) if isinstance(given, dict) else None
        if other != own:
            raise ValueError(
                f"the state has {part} {other}, the module {own}: make the module as the one that "
                "was saved; to change settings, load what its tables.save() wrote with "
                "EmbeddingBagCollection.load(), and make a module with from_collection()"
            )


def expected(collection: EmbeddingBagCollection) -> dict[str, tuple[np.dtype[Any], Shape]]:
    """Return the type and shape of every array that a state has, by its name there."""
    state, byte, count = collection_state(collection), np.dtype(np.uint8), np.dtype(np.int64)
    found: dict[str, tuple[np.dtype[Any], Shape]] = {
        f"table.{number}.{name}": (byte, (records.count, width))
        for number, records in enumerate(state.storage.tables)
        for name, width in records.block_bytes().items()
    }
    for name, own in _others(collection).items():
        found[name] = _stored_type(own.dtype), own.shape
    return found | dict.fromkeys(COUNTERS, (count, (1,)))


def _checked_arrays(
    collection: EmbeddingBagCollection, found: Any
) -> tuple[dict[str, Any], Counters]:
    """Return NumPy arrays by the collection's own names, and the counters."""
    state, result, wanted = collection_state(collection), {}, expected(collection)
    if not isinstance(found, dict) or set(found) != set(wanted):
        have = sorted(found) if isinstance(found, dict) else found
        raise ValueError(f"the state has the arrays {have}, not {sorted(wanted)}")
    for name, (_, shape) in wanted.items():
        one = found[name]
        if not name.startswith("cache.") or not isinstance(one, torch.Tensor) or why_not_dense(one):
            continue
        other = tuple(one.shape)
        if other != shape:
            raise ValueError(
                f"the state has a cache of another size ({name} has the shape {other}, not "
                f"{shape}): make the module with the cache of the one that was saved; to change "
                "it, load what its tables.save() wrote with "
                "EmbeddingBagCollection.load(path, cache=...), and make a module with "
                "from_collection()"
            )
    given = {
        name: np.ascontiguousarray(checked(name, found[name], *wanted[name]))
        for name in wanted
        if name not in COUNTERS
    }
    for number, (table, records) in enumerate(
        zip(collection.tables, state.storage.tables, strict=True)
    ):
        packed = {name: given[f"table.{number}.{name}"] for name in records.block_bytes()}
        for field, values in zip(records.fields, records.unpacked(packed), strict=True):
            result[f"table.{table.name}.{field.name}"] = values
    for name, own in _others(collection).items():
        result[name] = state.without_pins(name, given[name].view(own.dtype))
    step = _count("step", found["step"], contract.MAX_STEP)
    return result, Counters(step, _count("updates", found["updates"], step))


def check(collection: EmbeddingBagCollection) -> None:
    """Raise ValueError if the rows, states or caches in memory are damaged."""
    state = collection_state(collection)
    with state.writing() as on:
        state.check_own(on)


def _count(name: str, given: Any, most: int) -> int:
    """Return a checked counter."""
    number = int(checked(name, given, np.dtype(np.int64), (1,))[0])
    return integer(f"{name} of the state", number, 0, most)


def checked(name: str, given: Any, dtype: np.dtype[Any], shape: Shape) -> Any:
    """Return a tensor or NumPy array of a state as NumPy array; ValueError if it does not fit."""
    is_tensor = isinstance(given, torch.Tensor)
    if not is_tensor and not isinstance(given, np.ndarray):
        raise ValueError(
            f"{name} of the state is {type(given).__name__}, not {(dtype.name, shape)}"
        )
    why = why_not_dense(given) if is_tensor else ""
    if why:
        raise ValueError(f"{name} of the state {why}")
    found = str(given.dtype).removeprefix("torch."), tuple(given.shape)
    if found != (dtype.name, shape):
        raise ValueError(f"{name} of the state is {found}, not {(dtype.name, shape)}")
    return given.detach().cpu().numpy() if is_tensor else given
