"""The settings of the tables that the study compares."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from mpembed import registry

BASE = "fp32"  #: the name of the setting that all others are compared with
#: INT4 with independent draws: the setting that others are measured against.
CONTRAST = "int4 + 5 % stochastic"


@dataclass(frozen=True)
class Setting:
    """How the tables of a run are stored and trained.

    Attributes
    ----------
    precision, rounding, policy : str
        Names of the registry.
    load : float
        Rows of the FP32 cache as a share of the table rows; 0 for no cache.
    dim : int, optional
        Dimension of the tables; None is the model's.
    optimizer : str, optional
        A name of the registry; None is the model's.
    rate : float
        Factor of the optimizer's learning rate.
    batch : int
        Factor of the model's batch size.
    per_lookup : bool
        One update for each lookup of a table instead of one a step.
    """

    precision: str = "fp32"
    load: float = 0.0
    rounding: str = "stochastic"
    policy: str = "lfu"
    dim: int | None = None
    optimizer: str | None = None
    rate: float = 1.0
    batch: int = 1
    per_lookup: bool = False

    @property
    def name(self) -> str:
        """Name in the report: storage, rounding, and what differs from the model's training."""
        parts = [self.storage]
        if self.precision != BASE:  # whose rows are not rounded
            parts.append(self.rounding)
        if self.policy != "lfu":
            parts.append(self.policy)
        return " ".join(parts) + self.variant

    @property
    def storage(self) -> str:
        """Precision and cache."""
        return f"{self.precision} + {100 * self.load:g} %" if self.load else self.precision

    @property
    def variant(self) -> str:
        """The part of the name that says how it is trained; empty where as by default."""
        parts = []
        if self.dim is not None:
            parts.append(f"D={self.dim}")
        if self.optimizer is not None:
            parts.append(self.optimizer)
        if self.rate != 1.0:
            parts.append(f"rate x {self.rate:g}")
        if self.batch != 1:
            parts.append(f"batch x {self.batch}")
        if self.per_lookup:
            parts.append("update a lookup")
        return "".join(f", {part}" for part in parts)

    @property
    def available(self) -> bool:
        """Whether this build of mpembed knows the setting."""
        known = self.precision in registry.FORMATS and self.rounding in registry.ROUNDINGS
        return known and (self.optimizer is None or self.optimizer in registry.OPTIMIZERS)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


#: What makes INT4 with a cache lose less, and the setting with it and those before it. The last two
#: are each added to paired draws. The first is of models that look up a table several times a step.
CHANGES = {
    "update a lookup, independent draws": Setting("int4", 0.05, per_lookup=True),
    "one update a step": Setting("int4", 0.05),
    "and paired draws": Setting("int4", 0.05, "paired"),
    "and half of the rate": Setting("int4", 0.05, "paired", rate=0.5),
    "or four times the batch": Setting("int4", 0.05, "paired", batch=4),
}


def alike(setting: Setting) -> Setting:
    """Return FP32 rows that are trained like those of a setting."""
    return replace(setting, precision=BASE, load=0.0, rounding="stochastic", policy="lfu")


def changes(several: bool) -> list[Setting]:
    """Return the settings of `CHANGES` for a model, after the FP32 runs that are trained alike.

    Parameters
    ----------
    several : bool
        Whether the model looks up a table several times a step.
    """
    made = [setting for setting in CHANGES.values() if several or not setting.per_lookup]
    return list(dict.fromkeys([*map(alike, made), *made]))


def _roundings(precision: str, load: float, **more: Any) -> list[Setting]:
    return [Setting(precision, load, rounding, **more) for rounding in ("stochastic", "paired")]


def deciding() -> list[Setting]:
    """The settings that the report's first table compares."""
    made = [Setting(), Setting("int8", 0.05), *_roundings("int4", 0.05), *_roundings("int6", 0.0)]
    return [*made, *_roundings("int5", 0.02), Setting("int4", 0.0, "nearest")]


def storage() -> list[Setting]:
    """Precision x rounding x cache size, with the model's optimizer and dimension."""
    made = [Setting()]
    for precision in ("int8", "int6", "int5", "int4"):
        for load in (0.0, 0.05):
            made += _roundings(precision, load)
    made += _roundings("int5", 0.02)
    made += _roundings("int4", 0.01)
    made += _roundings("int4", 0.3)
    made += [Setting("int4", load, "nearest") for load in (0.0, 0.05)]
    made.append(Setting("int8", 0.0, "nearest"))
    return made


def _trained(**more: Any) -> list[Setting]:
    """The settings that are repeated with another optimizer, rate, batch or dimension."""
    return [Setting(**more), Setting("int8", 0.05, **more), *_roundings("int4", 0.05, **more)]


def contrasts(
    dim: int, optimizers: Iterable[str], equal_bytes: Mapping[str, int], several: bool
) -> list[Setting]:
    """Everything but the storage: policy, dimension, optimizer, rate, batch, equal bytes.

    Parameters
    ----------
    dim : int
        The other dimension.
    optimizers : iterable of str
        The other optimizers.
    equal_bytes : dict of str to int
        Dimension by precision of rows that take the bytes of INT4 and a cache of 5 %.
    several : bool
        Whether the model looks up a table several times a step.
    """
    made = [Setting("int4", 0.05, policy="lru")]
    made += [*_trained(dim=dim), *_roundings("int6", 0.0, dim=dim)]
    for optimizer in optimizers:
        made += _trained(optimizer=optimizer)
    for rate in (0.5, 2.0):
        made += _trained(rate=rate)
    made += _trained(batch=4)
    made += [Setting(precision, dim=smaller) for precision, smaller in equal_bytes.items()]
    if several:
        made += _trained(per_lookup=True)
    return made


def all_settings(
    dim: int, optimizers: Iterable[str], equal_bytes: Mapping[str, int], several: bool
) -> list[list[Setting]]:
    """Return all settings in parts, the most telling first; see `contrasts`."""
    parts = [deciding(), storage(), contrasts(dim, optimizers, equal_bytes, several)]
    seen: set[Setting] = set()
    for part in parts:
        part[:] = [setting for setting in part if setting not in seen]
        seen.update(part)
    return parts
