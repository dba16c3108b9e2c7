"""What all calls of a collection share: its state, and its settings as properties."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NoReturn, SupportsIndex

from mpembed._arguments import captures
from mpembed._collection.by_table import ByTable
from mpembed._collection.description import describe
from mpembed._collection.fixed import SETTINGS, refusal
from mpembed._collection.memory_report import memory_report
from mpembed._collection.state import CollectionState
from mpembed._collection.storage import GroupStorage
from mpembed.config import TableConfig

_NEVER_SET = SETTINGS | {"lr", "training"}


class CollectionBase:
    """A collection without what is done with it."""

    # No __dict__: what is set is a setting that counts, or an error.
    __slots__ = ("__weakref__", "_calls", "_engine", "_state", "_storage", "_tables")

    def _start(self, state: CollectionState) -> None:
        self._state, self._engine, self._storage = state, state.engine, state.storage
        self._calls = state.engine.calls
        self._tables = state.settings.tables

    def __setattr__(self, name: str, value: Any) -> None:
        try:
            if name in _NEVER_SET:  # not even on a subclass, which has a __dict__
                raise AttributeError(name)
            super().__setattr__(name, value)
        except AttributeError:
            used = self._state.settings.optimizers
            raise refusal(self, name, optimizers=used) from None

    @property
    def tables(self) -> tuple[TableConfig, ...]:
        """The tables, in the order of the output's columns."""
        return self._tables

    @property
    def optimizer(self) -> Any:
        """The collection's `Optimizer`, whose `lr` may be set at any time.

        None where every table has its own or is frozen: see `optimizers`.
        """
        return self._state.settings.optimizer

    @property
    def optimizers(self) -> Mapping[str, Any]:
        """The `Optimizer` of each table by its name, None if it is frozen; each `lr` may be set.

        Tables without an optimizer or rate of their own share the collection's: setting its `lr`
        sets that of all of them.
        """
        names = [table.name for table in self._tables]
        return MappingProxyType(ByTable(zip(names, self._state.settings.optimizers, strict=True)))

    @property
    def device(self) -> str:
        """The device's name: ``"cpu"``, ``"cuda:0"``."""
        return str(self._state.settings.device.name)

    @property
    def step(self) -> int:
        """The write step: how many calls so far could change state. Waits for a device."""
        with self._calls.on_last_stream(captures.waits("step")) as on:
            return int(self._engine.steps.read(on))

    def _find(self, name: str) -> tuple[GroupStorage, int]:
        """Return the group of a table, and its place there."""
        for group in self._storage.groups:
            for position, table in enumerate(group.plan.tables):
                if self._tables[table].name == name:
                    return group, position
        raise KeyError(f"no table {name!r}; there are {[t.name for t in self._tables]}")

    def __repr__(self) -> str:
        settings = self._state.settings
        return describe(settings, memory_report(self._storage, 0)["total"])

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        # Pickle, copy and torch.save ask this; a module that holds a collection asks it in turn.
        raise TypeError(
            "an EmbeddingBagCollection cannot be pickled or copied; use save() and "
            "EmbeddingBagCollection.load()"
        )


def collection_state(collection: CollectionBase) -> CollectionState:
    """Return what checkpoints, copies and adaptors of frameworks read and restore.

    Its arrays are the collection's own, and writable: kernels trust what is put there.
    """
    return collection._state


def start(collection: CollectionBase, state: CollectionState) -> None:
    """Let a new collection be that of a state."""
    collection._start(state)
