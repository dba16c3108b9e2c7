"""A collection's state as tensors, for ``state_dict``, pickle and copies."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from mpembed._arguments.scalars import integer
from mpembed._bindings import array_ops, contract
from mpembed._bindings.device import Stream
from mpembed.collection import EmbeddingBagCollection, collection_state

_FORMAT = 1


def _signed(array: Any) -> Any:
    """Return unsigned integers as signed ones: PyTorch does not do everything with unsigned."""
    return array.view(np.dtype(f"i{array.itemsize}")) if array.dtype.kind == "u" else array


def _keys(collection: EmbeddingBagCollection) -> dict[str, str]:
    """Return each array's name in a state: by the number of its table, whose name may change."""
    names: dict[str, str] = {}
    for number, table in enumerate(collection.tables):
        for kind in ("rows", "state"):
            names[f"table.{table.name}.{kind}"] = f"table.{number}.{kind}"
    return {name: names.get(name, name) for name in collection_state(collection).arrays()}


def _layout(collection: EmbeddingBagCollection) -> dict[str, Any]:
    """Return what a state and the collection that loads it must have in common."""
    settings, tables = collection_state(collection).settings, collection.tables
    cache = settings.cache
    return {
        "tables": [
            [t.num_embeddings, t.embedding_dim, t.precision, t.pooling]
            + ([t.name] if len(tables) > 1 else [])
            for t in tables
        ],
        "cache": None if cache is None else [cache.policy, cache.ways],
        "optimizer": [settings.optimizer.name, settings.optimizer.state_precision],
    }


def _tensors(collection: EmbeddingBagCollection, on: Stream) -> dict[str, torch.Tensor]:
    """Return the arrays and the step: on the CPU the same memory, of a device copies."""
    arrays, keys = collection_state(collection).arrays(), _keys(collection)
    if on.device.synchronous:
        found = {keys[name]: torch.from_numpy(_signed(a)) for name, a in arrays.items()}
        found["step"] = torch.from_numpy(collection_state(collection).step_array())
        return found
    copies = {
        keys[name]: torch.from_numpy(_signed(array_ops.host(array_ops.read_only(a, on))))
        for name, a in arrays.items()
    }
    return {**copies, "step": torch.tensor([collection_state(collection).step(on)])}


def state_of(collection: EmbeddingBagCollection) -> dict[str, Any]:
    """Return all that training changes, except the learning rate."""
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
                f"the state's {part} are {other}, the module's {own}: make the module as the one "
                "that was saved"
            )
    seed = integer("seed of the state", state.get("seed"), 0, contract.MAX_SEED)
    with collection_state(collection).writing():
        arrays, step = _checked(collection, state.get("arrays"))
        collection_state(collection).restore(arrays, step, seed)


def _checked(collection: EmbeddingBagCollection, found: Any) -> tuple[dict[str, Any], int]:
    """Return NumPy arrays by the collection's own names, and the step."""
    keys, result = _keys(collection), {}
    if not isinstance(found, dict) or set(found) != {*keys.values(), "step"}:
        have = sorted(found) if isinstance(found, dict) else found
        raise ValueError(f"the state has the arrays {have}, not {sorted([*keys.values(), 'step'])}")
    for name, own in collection_state(collection).arrays().items():
        dtype = np.dtype(own.dtype)
        stored = np.dtype(f"i{dtype.itemsize}") if dtype.kind == "u" else dtype
        values = _array(keys[name], found[keys[name]], stored, tuple(own.shape))
        values = collection_state(collection).without_pins(name, values.view(dtype))
        try:
            collection_state(collection).check(name, values)
        except ValueError as error:
            raise ValueError(f"the state: {error}") from None
        result[name] = values
    step = found["step"]
    step = step if isinstance(step, torch.Tensor) else np.asarray(step)
    number = int(_array("step", step, np.dtype(np.int64), (1,))[0])
    return result, integer("step of the state", number, 0, contract.MAX_STEP)


def _array(name: str, given: Any, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Any:
    """Return a tensor or NumPy array of a state as NumPy array; ValueError if it does not fit."""
    values = given.detach().cpu().numpy() if isinstance(given, torch.Tensor) else given
    is_array = isinstance(values, np.ndarray)
    if not is_array or values.dtype != dtype or values.shape != shape:
        what = (values.dtype.name, values.shape) if is_array else type(values).__name__
        raise ValueError(f"{name} of the state is {what}, not {(dtype.name, shape)}")
    return values
