"""What modules write into a ``state_dict`` and read from one: tensors alone."""

from __future__ import annotations

import json
import warnings
import weakref
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mpembed._checkpoint import strict_json
from mpembed._collection.state import CollectionState
from mpembed.collection import EmbeddingBagCollection, collection_state
from mpembed.torch import _state
from mpembed.torch._collection_hints import CollectionHints
from mpembed.torch._dense import why_not_dense
from mpembed.torch._forward_calls import ForwardCalls
from mpembed.torch._whole_tables import check_weight, write_table

#: What is before the names of a module's entries, so that they meet no parameter of a subclass.
_PREFIX = "tables."
#: The entry with what a state and the module that loads it have in common, as JSON.
SETTINGS = f"{_PREFIX}settings"
SEED = f"{_PREFIX}seed"
_SEED_TYPE = np.dtype(np.int64), (1,)
#: The parameter that stands for the tables; it has no value of its own.
_STAND_IN = "anchor"

#: The tensors of the last state of collections on the CPU, which are their memory.
_handed_out: weakref.WeakKeyDictionary[CollectionState, dict[str, Tensor]]
_handed_out = weakref.WeakKeyDictionary()
#: How often those of before were written.
_earlier_writes: weakref.WeakKeyDictionary[CollectionState, int] = weakref.WeakKeyDictionary()
#: The call of ``load_state_dict`` that loaded a collection last, by its list of missing keys.
_loaded_by: weakref.WeakKeyDictionary[CollectionState, list[str]] = weakref.WeakKeyDictionary()


def _entry(array: str) -> str:
    """Return the name of an array of a state, such as ``"tables.0.records"``."""
    return _PREFIX + array.removeprefix("table.")


def entries(collection: EmbeddingBagCollection) -> dict[str, Tensor]:
    """Return a collection's state as tensors by name; on the CPU they are its memory.

    There it is the same tensors each time, so that modules that share tables are seen to share
    them, and writes to them are found out.

    Raises
    ------
    RuntimeError
        If somebody wrote to those of before what no cache can hold.
    """
    owner = collection_state(collection)
    owner.foreign_writes = _writes_to
    known = _handed_out.setdefault(owner, {})
    _check_writes(collection, known)
    with torch.inference_mode(False):  # its tensors do not count writes
        state = _state.state_of(collection)
        found: dict[str, Tensor] = state.pop("arrays")
        seed = np.array([state.pop("seed")], np.uint64).view(np.int64)
        settings = np.frombuffer(json.dumps(state).encode(), np.uint8).copy()
        result = {SETTINGS: torch.from_numpy(settings), SEED: torch.from_numpy(seed)}
        result |= {_entry(name): tensor for name, tensor in found.items()}
    if collection.device != "cpu":
        return result
    for name, tensor in result.items():
        if name not in known or not _same(name, known[name], tensor):
            known[name] = tensor
    return {name: known[name] for name in result}


def writes_to_entries(collection: EmbeddingBagCollection) -> int:
    """Return how often the tensors of states were written, and with them the tables."""
    return _writes_to(collection_state(collection))


def _writes_to(state: CollectionState) -> int:
    known = _handed_out.get(state)
    writes = 0 if known is None else sum(tensor._version for tensor in known.values())
    return writes + _earlier_writes.get(state, 0)


def _check_writes(collection: EmbeddingBagCollection, known: dict[str, Tensor]) -> None:
    """Warn where the tensors of a state were written, and with them what kernels read."""
    writes = sum(tensor._version for tensor in known.values())
    if writes == 0:
        return
    state = collection_state(collection)
    _earlier_writes[state] = _earlier_writes.get(state, 0) + writes
    known.clear()
    what = "the tensors of an earlier state_dict() were written in place"
    try:
        _state.check(collection)
    except ValueError:
        raise RuntimeError(
            f"{what}, which has damaged the tables or their cache: load a good state with "
            "load_state_dict"
        ) from None
    warnings.warn(
        f"{what}, and with them the packed rows and optimizer state: this is right if all of them "
        "were copied from such a module, and wrong for an average (mpembed.torch.AveragedModel)",
        stacklevel=5,
    )


def _same(name: str, one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are the same memory, or the same settings or seed."""
    if name in (SETTINGS, SEED):
        return torch.equal(one, other)
    return one.data_ptr() == other.data_ptr() and one.shape == other.shape


def load_entries(collection: EmbeddingBagCollection, given: Mapping[str, Any]) -> None:
    """Continue from what `entries` returned; ValueError if it does not fit, before a change."""
    arrays = {name: _entry(name) for name in _state.expected(collection)}
    if SETTINGS in given:
        _state.check_settings(collection, _settings(given[SETTINGS]))
    missing = [name for name in (SETTINGS, SEED, *arrays.values()) if name not in given]
    if missing:
        raise ValueError(
            f"the state has entries of these tables, but {', '.join(missing)} not: take all of "
            "them, or none"
        )
    seed = int(_state.checked(SEED, given[SEED], *_SEED_TYPE).view(np.uint64)[0])
    found = {name: given[entry] for name, entry in arrays.items()}
    _state.load(collection, {**_settings(given[SETTINGS]), "seed": seed, "arrays": found})
    _handed_out.pop(collection_state(collection), None)


def _settings(given: Any) -> Any:
    """Return what the entry `SETTINGS` holds."""
    why = why_not_dense(given) if isinstance(given, Tensor) else ""
    if why:
        raise ValueError(f"{SETTINGS} of the state {why}")
    try:
        return strict_json.parse(given.detach().cpu().numpy().tobytes().decode())
    except (AttributeError, TypeError, RuntimeError, ValueError):
        raise ValueError(
            f"{SETTINGS} of the state is damaged, or not of an mpembed.torch module"
        ) from None


def load_weights(collection: EmbeddingBagCollection, given: Mapping[str, tuple[str, Any]]) -> None:
    """Set the rows of tables; ValueError if a value does not fit, before a change.

    Parameters
    ----------
    collection : EmbeddingBagCollection
        The tables.
    given : mapping of table name -> (str, Tensor)
        A weight and its name in errors.
    """
    tables = [table for table in collection.tables if table.name in given]
    for table in tables:
        check_weight(given[table.name][0], table, given[table.name][1])
    for table in tables:
        write_table(collection, table, given[table.name][1])


def _warn_of_unloaded(
    module: str,
    collection: EmbeddingBagCollection,
    given: Mapping[str, Any],
    originals: Mapping[str, Any],
    call: list[str],
) -> None:
    """Warn of tables that a state leaves as they are: with ``strict=False`` nothing else does.

    Of modules that share tables a file of safetensors has the first one's alone: the others are not
    left out. `call` is the list of missing keys, which all modules of a call have in common.
    """
    state = collection_state(collection)
    if given:
        _loaded_by[state] = call
    left = [repr(table.name) for table in collection.tables if table.name not in originals]
    if not left or _loaded_by.get(state) is call:
        return
    what = "its rows" if len(collection.tables) == 1 else f"the rows of {', '.join(left)}"
    warnings.warn(
        f"{module}: the state has nothing for {what}, which stay as they are", stacklevel=5
    )


class _AnyName:
    """Has an attribute of any name, for what follows an entry's name from object to object."""

    def __getattr__(self, name: str) -> _AnyName:
        if name.startswith("_"):
            raise AttributeError(name)
        return self


class TableState(CollectionHints):
    """A module whose tables are in its ``state_dict``; they are neither parameters nor buffers."""

    _calls: ForwardCalls

    @property
    def tables(self) -> EmbeddingBagCollection:
        """The collection: its rows, statistics, memory, checkpoints."""
        return self._calls.collection

    def _weight_names(self) -> dict[str, list[str]]:
        """Return by table how the original module's state, TorchRec's too, calls its weight."""
        names = [table.name for table in self.tables.tables]
        if isinstance(self.__dict__.get("num_embeddings"), int):
            return {names[0]: ["weight"]}
        kinds = "embedding_bags", "embeddings"
        return {name: [f"{kind}.{name}.weight" for kind in kinds] for name in names}

    def _fqn_modifiers(self) -> dict[str, str]:
        """Return where ``torch.distributed.checkpoint`` looks up the names of entries."""
        return {_PREFIX[:-1]: "_entry_names"}

    _entry_names = _AnyName()

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination.pop(prefix + _STAND_IN, None)
        for name, tensor in entries(self.tables).items():
            destination[prefix + name] = tensor

    def _load_from_state_dict(
        self,
        state_dict: Any,
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        """Take the tables from their entries, or from the weights of the original module."""
        missing: list[str] = []
        unexpected: list[str] = []
        state_dict.pop(prefix + _STAND_IN, None)  # of a state that was made of parameters()
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing, unexpected, error_msgs
        )
        own = [SETTINGS, SEED, *map(_entry, _state.expected(self.tables))]
        weights = self._weight_names()
        given = {name: state_dict[prefix + name] for name in own if prefix + name in state_dict}
        originals = {
            table: (prefix + name, state_dict[prefix + name])
            for table, names in weights.items()
            for name in names
            if prefix + name in state_dict
        }
        found = {prefix + name for name in given} | {key for key, _ in originals.values()}
        missing_keys += [key for key in missing if key != prefix + _STAND_IN]
        unexpected_keys += [key for key in unexpected if key not in found]
        if strict and not originals:
            missing_keys += [prefix + name for name in own if name not in given]
        elif strict:
            left = [names[0] for table, names in weights.items() if table not in originals]
            missing_keys += [prefix + name for name in left]
        where = prefix[:-1] or type(self).__name__
        try:
            self._load_tables(given, originals)
        except ValueError as error:
            error_msgs.append(f"{where}: {error}")
            return
        _warn_of_unloaded(where, self.tables, given, originals, missing_keys)

    def _load_tables(
        self, given: Mapping[str, Any], originals: Mapping[str, tuple[str, Any]]
    ) -> None:
        if given and originals:
            key, _ = next(iter(originals.values()))
            raise ValueError(
                f"the state has {key} of the original module, and {min(given)} of the converted "
                "one: take one of them out"
            )
        if originals:
            load_weights(self.tables, originals)
        elif given:
            load_entries(self.tables, given)
