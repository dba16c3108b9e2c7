"""What a collection is made of: its tables and its cache."""

import math
from dataclasses import dataclass

from mpembed import registry
from mpembed._arguments.scalars import FLOAT_MAX, boolean, finite, integer
from mpembed._bindings.contract import (
    MAX_DIM,
    MAX_ROWS,
    MAX_SETS,
    MAX_SLOTS,
    MAX_TABLES,
    MAX_WAYS,
    MIN_WAYS,
)
from mpembed.optim import Optimizer

_WAYS = [MIN_WAYS << n for n in range((MAX_WAYS // MIN_WAYS).bit_length())]
_INIT_VALUES = {"zeros": 0, "uniform": 2, "normal": 1}
Init = str | tuple[str, float] | tuple[str, float, float]


def _encodable(text: str) -> bool:
    return text.isascii() or text == text.encode("utf-8", "ignore").decode("utf-8")


@dataclass(frozen=True)
class TableConfig:
    """One embedding table.

    Parameters
    ----------
    name : str
        Unique within the collection.
    num_embeddings : int
        Rows, E >= 0.
    embedding_dim : int
        Columns, 1 <= D <= 2^20.
    precision : str
        Storage format of the rows, a key of ``mpembed.registry.FORMATS``.
    pooling : str
        ``"sum"``, ``"mean"``, or ``"none"`` (one output row an index).
    init : None, "zeros", ("uniform", lo, hi) or ("normal", std)
        Initial values; None is uniform within ``+-1/sqrt(total_rows)``.
    placement : str
        On a device, where rows and optimizer state lie: ``"device"``, or ``"host"`` for pinned host
        memory that the kernels read and write over the bus, so that only the cache takes the
        device's memory. The CPU knows only ``"device"``.
    optimizer : Optimizer, optional
        What trains the table; None is the collection's.
    lr : float, optional
        A learning rate of its own: the table is trained by a copy of its optimizer with this rate,
        which ``EmbeddingBagCollection.optimizers`` has.
    trainable : bool
        False freezes the table: it gives outputs and gradients of per-sample weights, is not
        updated and has no optimizer state.
    table_id : int, optional
        Which table this is to the random bits of initial rows and of rounding; by default its place
        in the collection.
    first_row : int
        Number of its row 0 in the whole table, where it is a shard of one.
    total_rows : int, optional
        Rows of the whole table; by default ``first_row + num_embeddings``.

    Notes
    -----
    Shards that have the same `table_id`, and the same `total_rows` where the initial rows are those
    by default, hold the rows of the whole table, bit for bit. Tables of a collection may share a
    `table_id` if they hold different rows.
    """

    name: str
    num_embeddings: int
    embedding_dim: int
    precision: str = "fp32"
    pooling: str = "sum"
    init: Init | None = None
    placement: str = "device"
    optimizer: Optimizer | None = None
    lr: float | None = None
    trainable: bool = True
    table_id: int | None = None
    first_row: int = 0
    total_rows: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name or not _encodable(self.name):
            raise ValueError(f"a table's name must be a non-empty Unicode string: {self.name!r}")
        # Plain Python numbers are kept, whatever integer types were given: checkpoints are JSON.
        rows = integer(f"num_embeddings of table {self.name!r}", self.num_embeddings, 0, MAX_ROWS)
        dim = integer(f"embedding_dim of table {self.name!r}", self.embedding_dim, 1, MAX_DIM)
        object.__setattr__(self, "num_embeddings", rows)
        object.__setattr__(self, "embedding_dim", dim)
        registry.choose(f"precision of table {self.name!r}", self.precision, registry.FORMATS)
        registry.choose(f"pooling of table {self.name!r}", self.pooling, registry.POOLINGS)
        places = {"device": 0, "host": 1}
        registry.choose(f"placement of table {self.name!r}", self.placement, places)
        self._check_training()
        self._check_identity()
        if self.init is not None:
            kind, *values = self.init_parameters()
            kept = (kind, *values[: _INIT_VALUES[kind]])
            object.__setattr__(self, "init", kept if len(kept) > 1 else kind)

    def _check_training(self) -> None:
        of = f"of table {self.name!r}"
        object.__setattr__(self, "trainable", boolean(f"trainable {of}", self.trainable))
        if self.optimizer is not None and not isinstance(self.optimizer, Optimizer):
            raise TypeError(f"optimizer {of} must be an mpembed optimizer, got {self.optimizer!r}")
        if self.lr is not None:
            object.__setattr__(self, "lr", finite(f"lr {of}", self.lr, 0.0, FLOAT_MAX))
        if not self.trainable and (self.optimizer is not None or self.lr is not None):
            given = "lr" if self.optimizer is None else "optimizer"
            raise ValueError(f"{given} {of} must be None: the table is frozen (trainable=False)")

    def _check_identity(self) -> None:
        of = f"of table {self.name!r}"
        if self.table_id is not None:
            table_id = integer(f"table_id {of}", self.table_id, 0, MAX_TABLES - 1)
            object.__setattr__(self, "table_id", table_id)
        most = MAX_ROWS - self.num_embeddings
        first = integer(f"first_row {of}", self.first_row, 0, most)
        object.__setattr__(self, "first_row", first)
        if self.total_rows is not None:
            least = first + self.num_embeddings
            total = integer(f"total_rows {of}", self.total_rows, 0, MAX_ROWS)
            if total < least:
                raise ValueError(
                    f"total_rows {of} must be at least first_row + num_embeddings (= {least}), "
                    f"got {total}"
                )
            object.__setattr__(self, "total_rows", total)

    def init_parameters(self) -> tuple[str, float, float]:
        """Return the kind of initial values and its two parameters (unused ones are 0)."""
        if self.init is None:
            total = self.total_rows
            total = self.first_row + self.num_embeddings if total is None else total
            bound = 1.0 / math.sqrt(max(total, 1))
            return "uniform", -bound, bound
        what = f"init of table {self.name!r}"
        given = (self.init,) if isinstance(self.init, str) else self.init
        valid = isinstance(given, tuple | list) and len(given) > 0 and isinstance(given[0], str)
        kind, *values = given if valid else ("",)
        if _INIT_VALUES.get(kind) != len(values):
            raise ValueError(
                f"{what} must be None, 'zeros', ('uniform', lo, hi) or ('normal', std), "
                f"got {self.init!r}"
            )
        # Every format stores such values; larger ones make no sense as a start.
        numbers = [finite(what, v, -1e4, 1e4) for v in values] + [0.0, 0.0]
        if kind == "uniform" and numbers[0] > numbers[1]:
            raise ValueError(f"{what}: lo {values[0]!r} is larger than hi {values[1]!r}")
        if kind == "normal" and numbers[0] < 0:
            raise ValueError(f"{what}: std {values[0]!r} is negative")
        return kind, numbers[0], numbers[1]


@dataclass(frozen=True)
class CacheConfig:
    """The FP32 cache; each group of tables with the same dimension and optimizer gets one.

    Parameters
    ----------
    load_factor : float, optional
        Cache rows / table rows of the group, > 0. The number of sets is rounded up.
    num_sets : int, optional
        Sets of each group's cache, instead of `load_factor`.
    policy : str
        ``"lru"`` or ``"lfu"``, a key of ``mpembed.registry.POLICIES``.
    ways : int
        Slots a set: 8, 16 or 32.
    """

    load_factor: float | None = None
    num_sets: int | None = None
    policy: str = "lru"
    ways: int = 32

    def __post_init__(self) -> None:
        if (self.load_factor is None) == (self.num_sets is None):
            raise ValueError("CacheConfig takes exactly one of load_factor and num_sets")
        if self.load_factor is not None:
            load = finite("load_factor", self.load_factor, 0.0, 1e6)
            if load <= 0:
                raise ValueError(f"load_factor must be positive, got {load!r}")
            object.__setattr__(self, "load_factor", load)
        if self.num_sets is not None:
            object.__setattr__(self, "num_sets", integer("num_sets", self.num_sets, 1, MAX_SETS))
        registry.choose("policy", self.policy, registry.POLICIES)
        object.__setattr__(self, "ways", integer("ways", self.ways, 1, 1 << 10))
        if self.ways not in _WAYS:
            raise ValueError(f"ways must be one of {_WAYS}, got {self.ways!r}")

    def sets_for(self, rows: int) -> int:
        """Return the number of sets for a group with this many table rows."""
        sets = self.num_sets or max(1, math.ceil((self.load_factor or 0) * rows / self.ways))
        if sets * self.ways > MAX_SLOTS:
            raise ValueError(f"a cache of {sets} x {self.ways} slots exceeds {MAX_SLOTS} slots")
        return sets
