"""Collections in pickles and deep copies of modules."""

from __future__ import annotations

import copy
import dataclasses
import weakref
from typing import Any

from mpembed._collection.settings import Settings
from mpembed._collection.state import CollectionState
from mpembed.collection import EmbeddingBagCollection, collection_state, from_state
from mpembed.optim import Optimizer
from mpembed.torch import _state


class PortableCollection:
    """A collection that pickle and ``copy.deepcopy`` take; the collection itself refuses them."""

    def __init__(self, collection: EmbeddingBagCollection) -> None:
        self.collection = collection

    @classmethod
    def of(cls, collection: EmbeddingBagCollection) -> PortableCollection:
        """Return the one of a collection: modules that share it share its copy."""
        found = _in_use.get(id(collection))
        if found is None:
            found = _in_use[id(collection)] = cls(collection)
        return found

    def __deepcopy__(self, memo: dict[int, Any]) -> PortableCollection:
        settings = collection_state(self.collection).settings
        names = "tables", "optimizer", "optimizers"  # one copy for all that share an optimizer
        copies = copy.deepcopy({name: getattr(settings, name) for name in names}, memo)
        twin = _without_rows(dataclasses.replace(settings, **copies))
        _state.load(twin, _state.state_of(self.collection))
        return PortableCollection(twin)

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        settings, state = (
            collection_state(self.collection).settings,
            _state.state_of(self.collection),
        )
        if protocol >= 4:
            # torch.save uses protocol 2 and writes tensors as they are. With others, tensors may
            # travel as shared memory, which is gone with these tensors before it arrives.
            arrays = {name: tensor.numpy() for name, tensor in state["arrays"].items()}
            state = {**state, "arrays": arrays}
        rest = (
            *(settings.device.name, settings.seed, settings.rounding),
            *(settings.bounds, settings.on_nonfinite),
        )
        optimizers = settings.optimizer, settings.optimizers
        return _rebuild, (settings.tables, settings.cache, optimizers, rest, state)


#: While a model is copied: the portable collections by their collections' ids.
_in_use: weakref.WeakValueDictionary[int, PortableCollection] = weakref.WeakValueDictionary()


def _without_rows(settings: Settings) -> EmbeddingBagCollection:
    """Return a collection whose rows are left undefined."""
    return from_state(CollectionState(settings))


def _rebuild(
    tables: Any,
    cache: Any,
    optimizers: tuple[Optimizer | None, tuple[Optimizer | None, ...]],
    rest: tuple[Any, ...],
    state: dict[str, Any],
) -> PortableCollection:
    shared, each = optimizers
    settings = Settings.checked(tables, cache, shared, *rest)
    made = _without_rows(dataclasses.replace(settings, optimizers=each))
    _state.load(made, state)
    return PortableCollection(made)
