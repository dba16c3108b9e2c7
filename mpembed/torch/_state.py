"""A collection's state as tensors: for ``state_dict``, pickle and copies."""

from __future__ import annotations

import copy
import dataclasses
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mpembed import checkpoint
from mpembed._arguments.scalars import integer
from mpembed._bindings import array_ops, contract
from mpembed._bindings.device import Stream
from mpembed._collection.settings import Settings
from mpembed.collection import EmbeddingBagCollection
from mpembed.optim import Optimizer

_FORMAT = 1
_PINS = np.uint64(contract.PIN_MASK)
Named = dict[str, Any]


class _Step:
    """The memory of a collection's write step, which it keeps alive."""

    def __init__(self, clock: Any) -> None:
        self.clock = clock
        self.__array_interface__ = {
            "version": 3,
            "shape": (1,),
            "typestr": "<i8",
            "data": (clock.address, False),
        }


def _signed(array: Any) -> Any:
    """Return the same memory with a type that all of torch knows."""
    return array.view(np.dtype(f"i{array.itemsize}")) if array.dtype.kind == "u" else array


def _keys(collection: EmbeddingBagCollection) -> dict[str, str]:
    """Return the name in a state of each array; tables go by number: a module may be renamed."""
    names: dict[str, str] = {}
    for number, table in enumerate(collection.tables):
        for kind in ("rows", "state"):
            names[f"table.{table.name}.{kind}"] = f"table.{number}.{kind}"
    return {name: names.get(name, name) for name in collection._storage.arrays()}


def _layout(collection: EmbeddingBagCollection) -> Named:
    """Return what two collections must have in common, in plain types."""
    settings, tables = collection._settings, collection.tables
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
    """Return the arrays and the step: on the CPU their memory, of a device copies."""
    arrays, keys = collection._storage.arrays(), _keys(collection)
    if on.device.immediate:
        found = {keys[name]: torch.from_numpy(_signed(a)) for name, a in arrays.items()}
        found["step"] = torch.from_numpy(np.asarray(_Step(collection._engine.clock)))
        return found
    copies = {
        keys[name]: torch.from_numpy(_signed(array_ops.host(array_ops.read_only(a, on))))
        for name, a in arrays.items()
    }
    return {**copies, "step": torch.tensor([collection._engine.clock.read(on)])}


def state_of(collection: EmbeddingBagCollection) -> Named:
    """Return all that training changes, but the learning rate."""
    with collection._calls.again() as on:
        collection._raise_found(on)
        return {
            "format": _FORMAT,
            "layout": _layout(collection),
            "seed": collection._settings.seed,
            "arrays": _tensors(collection, on),
        }


def load(collection: EmbeddingBagCollection, state: Any) -> None:
    """Continue from a state; ValueError if it does not fit, before anything changes."""
    if not isinstance(state, dict) or state.get("format") != _FORMAT:
        raise ValueError("the state is none of mpembed's modules, or of another version")
    layout, given = _layout(collection), state.get("layout")
    for part, own in layout.items():
        other = given.get(part) if isinstance(given, dict) else None
        if other != own:
            raise ValueError(f"the state's {part} are {other}, the module's {own}")
    seed = integer("seed of the state", state.get("seed"), 0, contract.MAX_SEED)
    with collection._calls.again() as on:
        arrays, step = _checked(collection, state.get("arrays"))
        _write(collection, arrays, step, seed, on)


def _checked(collection: EmbeddingBagCollection, found: Any) -> tuple[Named, int]:
    """Return NumPy arrays by the collection's own names, and the step."""
    keys, result = _keys(collection), {}
    if not isinstance(found, dict) or set(found) != {*keys.values(), "step"}:
        have = sorted(found) if isinstance(found, dict) else found
        raise ValueError(f"the state has the arrays {have}, not {sorted([*keys.values(), 'step'])}")
    for name, own in collection._storage.arrays().items():
        tensor = found[keys[name]]
        dtype = np.dtype(own.dtype)
        wanted = np.dtype(f"i{dtype.itemsize}") if dtype.kind == "u" else dtype
        values = tensor.detach().cpu().numpy() if isinstance(tensor, torch.Tensor) else tensor
        if (
            not isinstance(values, np.ndarray)
            or values.dtype != wanted
            or values.shape != tuple(own.shape)
        ):
            known = isinstance(values, np.ndarray)
            what = (values.dtype.name, values.shape) if known else type(values).__name__
            raise ValueError(
                f"{keys[name]} of the state is {what}, not {(wanted.name, tuple(own.shape))}"
            )
        values = values.view(dtype)
        if name.startswith("cache.") and name.endswith(".tags"):
            values = values & ~_PINS  # of batches that are open there
            checkpoint._check_tags(collection, Path("the state"), name, values)
        result[name] = values
    step = found["step"]
    step = step.detach().cpu().numpy() if isinstance(step, torch.Tensor) else np.asarray(step)
    if step.shape != (1,) or step.dtype != np.int64:
        raise ValueError(f"step of the state is {step.dtype.name, step.shape}, not ('int64', (1,))")
    return result, integer("step of the state", int(step[0]), 0, contract.MAX_STEP)


def _write(
    collection: EmbeddingBagCollection, arrays: Named, step: int, seed: int, on: Stream
) -> None:
    engine = collection._engine
    for ticket in list(engine._open):
        engine.close(ticket)
    for name, own in collection._storage.arrays().items():
        array_ops.assign(own, np.ascontiguousarray(arrays[name]), on)
    engine.clock.set(step, on)
    if seed != collection._settings.seed:
        collection._settings = dataclasses.replace(collection._settings, seed=seed)
        for group in engine.groups:
            group.reseed(seed)


class Portable:
    """A collection on its way through pickle or ``copy.deepcopy``, which it refuses itself."""

    def __init__(self, collection: EmbeddingBagCollection) -> None:
        self.collection = collection

    @classmethod
    def of(cls, collection: EmbeddingBagCollection) -> Portable:
        """Return the one of a collection: modules that share it share its copy."""
        found = _on_their_way.get(id(collection))
        if found is None:
            found = _on_their_way[id(collection)] = cls(collection)
        return found

    def __deepcopy__(self, memo: dict[int, Any]) -> Portable:
        settings = self.collection._settings
        optimizer = copy.deepcopy(settings.optimizer, memo)  # one for all that share it
        twin = _made(dataclasses.replace(settings, optimizer=optimizer))
        load(twin, state_of(self.collection))
        return Portable(twin)

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        s, state = self.collection._settings, state_of(self.collection)
        if protocol >= 4:
            # Not torch.save, which uses 2 and writes tensors as they are. Elsewhere tensors may
            # travel as shared memory, which is gone with these ones before it arrives.
            arrays = {name: tensor.numpy() for name, tensor in state["arrays"].items()}
            state = {**state, "arrays": arrays}
        places = s.device.name, s.seed, s.rounding, s.bounds, s.on_nonfinite
        return _rebuilt, (s.tables, s.cache, s.optimizer, places, state)


_on_their_way: weakref.WeakValueDictionary[int, Portable] = weakref.WeakValueDictionary()


def _made(settings: Settings) -> EmbeddingBagCollection:
    """Return a collection whose rows are left undefined."""
    made = EmbeddingBagCollection.__new__(EmbeddingBagCollection)
    made._configure(settings)
    return made


def _rebuilt(
    tables: Any, cache: Any, optimizer: Optimizer, places: tuple[Any, ...], state: Named
) -> Portable:
    made = _made(Settings.checked(tables, cache, optimizer, *places))
    load(made, state)
    return Portable(made)
