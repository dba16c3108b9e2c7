"""Which tables of a collection share kernels and a cache."""

from dataclasses import dataclass

from mpembed import registry
from mpembed._bindings import kernels
from mpembed._collection.settings import Settings
from mpembed.optim import Optimizer


@dataclass(frozen=True)
class GroupPlan:
    """Tables with the same dimension, kind of optimizer and mode of weight decay.

    Attributes
    ----------
    dim : int
        Their dimension.
    optimizer : Optimizer or None
        That of the first table; its kind and decay mode are those of all. None: frozen tables.
    cached : bool
        Whether they have a cache.
    tables : tuple of int
        Their places in the collection.
    """

    dim: int
    optimizer: Optimizer | None
    cached: bool
    tables: tuple[int, ...]

    @property
    def label(self) -> str:
        """The group in names of arrays, such as ``"64.adam"`` or ``"64.sgd.l2"``."""
        if self.optimizer is None:
            return f"{self.dim}.frozen"
        mode = self.optimizer.weight_decay_mode
        return f"{self.dim}.{self.optimizer.kind}" + ("" if mode == "none" else f".{mode}")

    @property
    def kind(self) -> int:
        """The optimizer's number; -1 for frozen tables."""
        return -1 if self.optimizer is None else self.optimizer.kernel_kind()[0]

    @property
    def slot_floats(self) -> int:
        """Values of a cached row with its states of a value an element."""
        return kernels.slot_floats(self.kind, self.dim)

    @property
    def slot_values(self) -> int:
        """States of a value a row of a cached row."""
        return kernels.slot_values(self.kind)


def plan(settings: Settings) -> list[GroupPlan]:
    """Return the groups: by dimension, then optimizer, then decay mode.

    Optimizers of the user's own come after the package's, frozen tables last.

    A frozen table has a cache only where reading its rows takes the bus.
    """
    found: dict[tuple[int, tuple[int, str, int], bool], list[int]] = {}
    for number, table in enumerate(settings.tables):
        optimizer = settings.optimizers[number]
        cached = settings.cache is not None and (optimizer is not None or table.placement == "host")
        found.setdefault((table.embedding_dim, _order(optimizer), cached), []).append(number)
    return [
        GroupPlan(dim, settings.optimizers[tables[0]], cached, tuple(tables))
        for (dim, _, cached), tables in sorted(found.items())
    ]


def _order(optimizer: Optimizer | None) -> tuple[int, str, int]:
    """Return what groups are sorted by: those of the user's own by name.

    Their numbers are this process's, and a checkpoint has the order.
    """
    last = len(registry.OPTIMIZERS)
    if optimizer is None:
        return last + 1, "", 0
    number, decay = optimizer.kernel_kind()
    return (number, "", decay) if number < last else (last, optimizer.kind, decay)


def first_keys(group: GroupPlan, settings: Settings) -> dict[int, int]:
    """Return the linear row id of row 0 of each table of a group, by the table's place."""
    found, end = {}, 0
    for table in group.tables:
        found[table], end = end, end + settings.tables[table].num_embeddings
    return found
