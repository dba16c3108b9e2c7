"""What a sharder is made with, in a form that TorchRec may copy, compare and hash.

TorchRec groups tables by their ``fused_params``, of which it makes deep copies. An optimizer or a
collection is no such value; its settings are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from mpembed import registry
from mpembed._arguments.scalars import integer
from mpembed._bindings.contract import MAX_SEED
from mpembed.config import CacheConfig, Init, TableConfig
from mpembed.optim import Optimizer, made

#: The only key of the ``fused_params`` of a sharded module, and of a sharder's, which its planner
#: reads.
FUSED_PARAM = "mpembed"


@dataclass(frozen=True)
class TableSettings:
    """Settings of one table that differ from those of the sharder.

    Parameters
    ----------
    precision : str, optional
        Storage format of the rows; None is the sharder's.
    optimizer : mpembed.optim.Optimizer, optional
        None is the sharder's.
    lr : float, optional
        A learning rate of the table's own.
    init : None, "zeros", ("uniform", lo, hi) or ("normal", std)
        Initial values, as in ``mpembed.TableConfig``. None is what TorchRec's configuration says
        (``weight_init_min``, ``weight_init_max``), or ``+-1/sqrt(rows)``.
    trainable : bool
        False freezes the table.
    placement : str
        ``"device"`` or ``"host"``, as in ``mpembed.TableConfig``.
    """

    precision: str | None = None
    optimizer: Optimizer | None = None
    lr: float | None = None
    init: Init | None = None
    trainable: bool = True
    placement: str = "device"


@dataclass(frozen=True)
class OptimizerSettings:
    """An optimizer's class and arguments."""

    kind: str
    arguments: tuple[tuple[str, Any], ...]

    @classmethod
    def of(cls, optimizer: Optimizer) -> OptimizerSettings:
        """Return the settings of an optimizer, its rate as it is now among them."""
        given = optimizer.settings()
        return cls(optimizer.kind, tuple((name, _hashable(given[name])) for name in sorted(given)))

    def make(self) -> Optimizer:
        """Return a new optimizer with these settings."""
        plain = {name: _plain(value) for name, value in self.arguments}
        return made(self.kind, plain)


@dataclass(frozen=True)
class _Items:
    """A dict, hashable."""

    items: tuple[tuple[str, Any], ...]


def _hashable(value: Any) -> Any:
    if isinstance(value, Mapping):
        return _Items(tuple((name, _hashable(value[name])) for name in sorted(value)))
    return tuple(value) if isinstance(value, list) else value


def _plain(value: Any) -> Any:
    return dict(value.items) if isinstance(value, _Items) else value


@dataclass(frozen=True)
class FrozenTable:
    """All settings of one table; an optimizer's hold the table's own rate."""

    precision: str
    optimizer: OptimizerSettings | None
    init: Init | None
    trainable: bool
    placement: str


@dataclass(frozen=True)
class ModuleSettings:
    """All settings of the tables of one collection.

    Attributes
    ----------
    names : tuple of str
        Its tables, in its order. A table's place is its `table_id` in random bits.
    tables : tuple of FrozenTable
        Their settings.
    cache, seed, rounding, bounds, on_nonfinite
        As in ``mpembed.EmbeddingBagCollection``.
    """

    names: tuple[str, ...]
    tables: tuple[FrozenTable, ...]
    cache: CacheConfig | None
    seed: int
    rounding: str
    bounds: str
    on_nonfinite: str

    def place(self, name: str) -> int:
        """Return a table's place in the module."""
        return self.names.index(name)


@dataclass(frozen=True)
class SharderSettings:
    """The arguments of a sharder, checked.

    Attributes
    ----------
    default : FrozenTable
        Of the tables without settings of their own.
    tables : tuple of (str, FrozenTable)
        Of the others.
    """

    default: FrozenTable
    tables: tuple[tuple[str, FrozenTable], ...]
    cache: CacheConfig | None
    seed: int
    rounding: str
    bounds: str
    on_nonfinite: str

    @classmethod
    def checked(
        cls,
        optimizer: Optimizer | None,
        precision: str,
        cache: CacheConfig | None,
        tables: Mapping[str, TableSettings] | None,
        seed: int,
        rounding: str,
        bounds: str,
        on_nonfinite: str,
    ) -> SharderSettings:
        """Return the settings; TypeError or ValueError for wrong ones."""
        if optimizer is not None and not isinstance(optimizer, Optimizer):
            raise TypeError(f"optimizer must be an mpembed optimizer or None, got {optimizer!r}")
        if cache is not None and not isinstance(cache, CacheConfig):
            raise TypeError(f"cache must be a CacheConfig or None, got {cache!r}")
        registry.choose("precision", precision, registry.FORMATS)
        registry.choose("rounding", rounding, registry.ROUNDINGS)
        registry.choose("bounds", bounds, {"raise": 0, "drop": 1})
        registry.choose("on_nonfinite", on_nonfinite, {"raise": 0, "skip": 1})
        seed = integer("seed", seed, 0, MAX_SEED)
        default = TableSettings(precision, optimizer)
        found = []
        for name, given in (tables or {}).items():
            if not isinstance(given, TableSettings):
                raise TypeError(f"tables[{name!r}] must be a TableSettings, got {given!r}")
            found.append((name, _frozen(name, given, default)))
        shared = _frozen("table", default, default)
        return cls(shared, tuple(found), cache, seed, rounding, bounds, on_nonfinite)

    def of_module(self, names: Iterable[str], path: str) -> ModuleSettings:
        """Return the settings of a collection with these tables, at a path in the model."""
        given, own = tuple(names), dict(self.tables)
        chosen = tuple(own.get(name, self.default) for name in given)
        for name, one in zip(given, chosen, strict=True):
            if one.trainable and one.optimizer is None:
                raise ValueError(
                    f"table {name!r} has no optimizer: give the sharder one (optimizer=), or the "
                    "table (tables={name: TableSettings(optimizer=...)}), or freeze it "
                    "(trainable=False)"
                )
        seed = module_seed(self.seed, path)
        rest = self.cache, seed, self.rounding, self.bounds, self.on_nonfinite
        return ModuleSettings(given, chosen, *rest)


def module_seed(seed: int, path: str) -> int:
    """Return the seed of a collection at a path in the model, such as ``"sparse.ebc"``.

    The tables of two collections have the same numbers, so their random bits differ by the seed.
    The model itself, whose path is empty, has `seed`.
    """
    if not path:
        return seed
    digest = hashlib.blake2b(f"{seed}/{path}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def _frozen(name: str, given: TableSettings, default: TableSettings) -> FrozenTable:
    """Return all settings of a table, checked as a table's of one row are."""
    precision = default.precision if given.precision is None else given.precision
    own = default.optimizer if given.trainable and given.optimizer is None else given.optimizer
    if own is not None and given.lr is not None:
        own = own.with_lr(given.lr)
    checked = TableConfig(
        name,
        1,
        1,
        "fp32" if precision is None else precision,
        init=given.init,
        placement=given.placement,
        optimizer=own,
        lr=given.lr,
        trainable=given.trainable,
    )  # of a frozen table it refuses a rate
    return FrozenTable(
        checked.precision,
        None if own is None else OptimizerSettings.of(own),
        checked.init,
        checked.trainable,
        checked.placement,
    )
