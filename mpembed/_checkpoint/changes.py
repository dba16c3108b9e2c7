"""What a checkpoint is loaded with instead of what it was saved with."""

import dataclasses
import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mpembed import registry
from mpembed._arguments.scalars import integer
from mpembed._bindings.contract import MAX_ROWS
from mpembed._collection import grouping
from mpembed._collection.settings import Settings
from mpembed.config import CacheConfig, TableConfig
from mpembed.optim import Optimizer


class AsSaved(enum.Enum):
    """The type of `AS_SAVED`."""

    AS_SAVED = "as saved"

    def __repr__(self) -> str:
        return "AS_SAVED"


#: In place of a cache, where None means that there is none.
AS_SAVED = AsSaved.AS_SAVED


@dataclass(frozen=True)
class Changes:
    """Arguments of ``EmbeddingBagCollection.load``; None, or AS_SAVED, leaves a setting as it is.

    All that can be said without the checkpoint is checked here.
    """

    cache: CacheConfig | AsSaved | None = AS_SAVED
    precision: str | Mapping[str, str] | None = None
    rounding: str | None = None
    optimizer: Optimizer | Mapping[str, Optimizer] | None = None
    bounds: str | None = None
    on_nonfinite: str | None = None
    num_embeddings: Mapping[str, int] | None = None

    def __post_init__(self) -> None:
        if self.cache is not AS_SAVED and not isinstance(self.cache, CacheConfig | None):
            raise TypeError(f"cache must be a CacheConfig or None, got {self.cache!r}")
        if self.rounding is not None:
            registry.choose("rounding", self.rounding, registry.ROUNDINGS)
        if self.bounds is not None:
            registry.choose("bounds", self.bounds, {"raise": 0, "drop": 1})
        if self.on_nonfinite is not None:
            registry.choose("on_nonfinite", self.on_nonfinite, {"raise": 0, "skip": 1})
        if self.precision is not None and not isinstance(self.precision, Mapping):
            registry.choose("precision", self.precision, registry.FORMATS)
        if not isinstance(self.optimizer, Optimizer | Mapping | None):
            raise TypeError(
                "optimizer must be an mpembed optimizer or a dict of table name -> optimizer, got "
                f"{self.optimizer!r}"
            )
        for name, precision in self._by_table("precision").items():
            registry.choose(f"precision[{name!r}]", precision, registry.FORMATS)
        for name, rows in self._by_table("num_embeddings").items():
            integer(f"num_embeddings[{name!r}]", rows, 0, MAX_ROWS)
        for name, one in self._by_table("optimizer").items():
            if not isinstance(one, Optimizer):
                raise TypeError(f"optimizer[{name!r}] must be an mpembed optimizer, got {one!r}")

    def _by_table(self, argument: str) -> Mapping[str, Any]:
        """Return an argument's values by table, none where it is not a dict."""
        given = getattr(self, argument)
        if argument == "num_embeddings" and given is not None and not isinstance(given, Mapping):
            raise TypeError(f"num_embeddings must be a dict of table name -> rows, got {given!r}")
        return given if isinstance(given, Mapping) else {}

    def applied(self, saved: Settings) -> Settings:
        """Return the settings that a checkpoint's become.

        Raises
        ------
        TypeError, ValueError
            If there is no such table, or the values do not go together.
        """
        names = [table.name for table in saved.tables]
        for argument in ("precision", "num_embeddings", "optimizer"):
            for name in self._by_table(argument):
                if name not in names:
                    raise ValueError(
                        f"{argument}: no table {name!r} in the checkpoint; it has {names}"
                    )
        shared = self.optimizer if isinstance(self.optimizer, Optimizer) else saved.optimizer
        found = Settings.checked(
            [self._table(table) for table in saved.tables],
            saved.cache if isinstance(self.cache, AsSaved) else self.cache,
            shared,
            saved.device.name,
            saved.seed,
            self.rounding or saved.rounding,
            self.bounds or saved.bounds,
            self.on_nonfinite or saved.on_nonfinite,
        )
        self._refuse_unused(found)
        for old, new, table in zip(saved.optimizers, found.optimizers, found.tables, strict=True):
            if table.lr is not None and old is not None and new is not None:
                new.lr = old.lr  # the table's rate as it was last
        return found

    def _table(self, saved: TableConfig) -> TableConfig:
        """Return a table as it is to be."""
        given = {name: self._by_table(name).get(saved.name) for name in ("precision", "optimizer")}
        changed = {name: value for name, value in given.items() if value is not None}
        if isinstance(self.precision, str):
            changed["precision"] = self.precision
        if "optimizer" in changed:
            if not saved.trainable:
                raise ValueError(f"optimizer: table {saved.name!r} is frozen (trainable=False)")
            changed["lr"] = None  # that of the optimizer
        rows = self._by_table("num_embeddings").get(saved.name, saved.num_embeddings)
        if saved.total_rows is not None:
            changed["total_rows"] = max(saved.total_rows, saved.first_row + rows)
        return dataclasses.replace(saved, num_embeddings=rows, **changed)

    def _refuse_unused(self, settings: Settings) -> None:
        """Raise ValueError for a shared optimizer that no table would use."""
        if isinstance(self.optimizer, Optimizer) and not any(
            table.trainable and table.optimizer is None for table in settings.tables
        ):
            raise ValueError(
                "optimizer: every table of the checkpoint has its own or is frozen; pass a dict of "
                "table name -> optimizer"
            )


def same_arrays(one: Settings, other: Settings) -> bool:
    """Whether the arrays of two collections mean the same, so that one's can be the other's."""
    return _meaning(one) == _meaning(other)


def _meaning(settings: Settings) -> tuple[Any, ...]:
    """Return what decides which arrays there are and how they are read."""
    pairs = zip(settings.tables, settings.optimizers, strict=True)
    return (
        [(table.num_embeddings, table.precision, states_of(one)) for table, one in pairs],
        [(group.label, group.tables, group.cached) for group in grouping.plan(settings)],
        settings.cache,
        settings.rounding,
    )


def states_of(optimizer: Optimizer | None) -> dict[str, tuple[int, str]]:
    """Return the shape and precision of each state by name."""
    kept = () if optimizer is None else optimizer.states
    return {state.name: (state.shape, state.precision) for state in kept}
