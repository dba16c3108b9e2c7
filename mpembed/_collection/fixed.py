"""What cannot be set on a collection or module: an AttributeError that says what to do instead."""

from collections.abc import Iterable
from dataclasses import fields

from mpembed.config import CacheConfig, TableConfig
from mpembed.optim import Optimizer

#: Arguments of a collection, which stay as they were given.
SETTINGS = frozenset(
    ("bounds", "cache", "device", "on_nonfinite", "optimizer", "rounding", "seed", "tables")
)
_TABLE = frozenset(field.name for field in fields(TableConfig))
_CACHE = frozenset(field.name for field in fields(CacheConfig))


def _instead(kind: str, name: str, prefix: str, optimizers: Iterable[Optimizer | None]) -> str:
    """Return what to do instead of setting an attribute, "" where nothing is known of it."""
    if name in ("lr", "learning_rate"):
        own = f"{prefix}optimizers[table].lr for a table with its own"
        groups = "set it in the param_groups of its FusedOptimizer; without one, " if prefix else ""
        return f"{groups}set {prefix}optimizer.lr, or {own}"
    if name in ("optimizer", "optimizers"):
        return f"set {prefix}optimizer.lr, or pass optimizer= to a new {kind}"
    if name in SETTINGS:
        return f"it is fixed when the {kind} is made: pass {name}= to a new one"
    if name == "training":
        return "pass training=False to forward()"
    if name in _CACHE:
        return f"pass cache=CacheConfig({name}=...) to a new {kind}"
    for optimizer in optimizers:
        if optimizer is not None and name in optimizer.settings():
            made = type(optimizer).__name__
            return f"pass optimizer={made}({name}=...) to a new {kind}"
    if name in _TABLE:
        return f"it is fixed when the {kind} is made: give it to the table"
    return ""


def refusal(
    owner: object, name: str, prefix: str = "", optimizers: Iterable[Optimizer | None] = ()
) -> AttributeError:
    """Return the error for an attribute that cannot be set.

    Parameters
    ----------
    owner : object
        The collection or module.
    name : str
        The attribute.
    prefix : str
        How the collection is reached from the owner, such as ``"tables."``.
    optimizers : iterable of Optimizer or None
        Those of the tables.
    """
    kind = type(owner).__name__
    way_out = _instead(kind, name, prefix, optimizers)
    if not way_out:
        known = ", ".join(one for one in dir(type(owner)) if not one.startswith("_"))
        way_out = f"it has {known}"
    return AttributeError(f"{kind}.{name} cannot be set: {way_out}", name=name, obj=owner)
