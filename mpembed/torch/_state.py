"""A collection's state as tensors, for ``state_dict``, pickle and copies."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from mpembed._arguments.scalars import integer
from mpembed._bindings import contract
from mpembed._bindings.device import Stream
from mpembed._collection.records import StoredArray
from mpembed._collection.state import COUNTERS, Counters
from mpembed.collection import EmbeddingBagCollection, collection_state

_FORMAT = 3


def _signed(array: Any) -> Any:
    """Return unsigned integers as signed ones: PyTorch does not do everything with unsigned."""
    return array.view(np.dtype(f"i{array.itemsize}")) if array.dtype.kind == "u" else array


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
    tensors = {name: torch.from_numpy(_signed(array)) for name, array in found.items()}
    if on.device.synchronous:
        counts = state.counter_arrays()
        return {**tensors, **{name: torch.from_numpy(count) for name, count in counts.items()}}
    counters = state.counters(on).named()
    return {**tensors, **{name: torch.tensor([count]) for name, count in counters.items()}}


def state_of(collection: EmbeddingBagCollection) -> dict[str, Any]:
    """Return all that training changes, except the learning rates."""
    with collection_state(collection).reading() as on:
        return {
            "format": _FORMAT,
            "layout": _layout(collection),
            "seed": collection_state(collection).settings.seed,
            "arrays": _tensors(collection, on),
        }


def load(collection: EmbeddingBagCollection, state: Any) -> None:
    """Continue from a state; ValueError if it does not fit, before anything changes."""
    if not isinstance(state, dict) or state.get("format") != _FORMAT:
        raise ValueError(
            f"the state is not from get_extra_state() of an mpembed.torch module, format {_FORMAT}"
        )
    layout, given = _layout(collection), state.get("layout")
    for part, own in layout.items():
        other = given.get(part) if isinstance(given, dict) else None
        if other != own:
            raise ValueError(
                f"the state has {part} {other}, the module {own}: make the module as the one that "
                "was saved"
            )
    seed = integer("seed of the state", state.get("seed"), 0, contract.MAX_SEED)
    with collection_state(collection).writing():
        arrays, counters = _checked(collection, state.get("arrays"))
        collection_state(collection).restore(arrays, counters, seed)


def _checked(collection: EmbeddingBagCollection, found: Any) -> tuple[dict[str, Any], Counters]:
    """Return NumPy arrays by the collection's own names, and the counters."""
    state = collection_state(collection)
    others, result = _others(collection), {}
    blocks = {
        f"table.{number}.{name}": (records.count, width)
        for number, records in enumerate(state.storage.tables)
        for name, width in records.block_bytes().items()
    }
    expected = {*blocks, *others, *COUNTERS}
    if not isinstance(found, dict) or set(found) != expected:
        have = sorted(found) if isinstance(found, dict) else found
        raise ValueError(f"the state has the arrays {have}, not {sorted(expected)}")
    given = {
        key: np.ascontiguousarray(_array(key, found[key], np.dtype(np.int8), shape)).view(np.uint8)
        for key, shape in blocks.items()
    }
    for number, (table, records) in enumerate(
        zip(collection.tables, state.storage.tables, strict=True)
    ):
        packed = {name: given[f"table.{number}.{name}"] for name in records.block_bytes()}
        for field, values in zip(records.fields, records.unpacked(packed), strict=True):
            result[f"table.{table.name}.{field.name}"] = values
    for name, own in others.items():
        dtype = own.dtype
        stored = np.dtype(f"i{dtype.itemsize}") if dtype.kind == "u" else dtype
        values = _array(name, found[name], stored, own.shape)
        values = state.without_pins(name, values.view(dtype))
        try:
            state.check(name, values)
        except ValueError as error:
            raise ValueError(f"the state: {error}") from None
        result[name] = values
    step = _count("step", found["step"], contract.MAX_STEP)
    return result, Counters(step, _count("updates", found["updates"], step))


def _count(name: str, given: Any, most: int) -> int:
    """Return a checked counter."""
    values = given if isinstance(given, torch.Tensor) else np.asarray(given)
    number = int(_array(name, values, np.dtype(np.int64), (1,))[0])
    return integer(f"{name} of the state", number, 0, most)


def _array(name: str, given: Any, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Any:
    """Return a tensor or NumPy array of a state as NumPy array; ValueError if it does not fit."""
    values = given.detach().cpu().numpy() if isinstance(given, torch.Tensor) else given
    is_array = isinstance(values, np.ndarray)
    if not is_array or values.dtype != dtype or values.shape != shape:
        what = (values.dtype.name, values.shape) if is_array else type(values).__name__
        raise ValueError(f"{name} of the state is {what}, not {(dtype.name, shape)}")
    return values
