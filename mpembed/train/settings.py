"""What to train: the options of the job and the table settings it compares."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation

from mpembed import registry
from mpembed._arguments.scalars import FLOAT_MAX
from mpembed._bindings.contract import MAX_SEED, MAX_THREADS
from mpembed.train.data.options import DataOptions, OptionError

PRECISIONS = tuple(registry.FORMATS)
ROUNDINGS = tuple(registry.ROUNDINGS)
POLICIES = tuple(registry.POLICIES)
#: The registry's name of each optimizer, by the name that the command line gives it.
OPTIMIZERS = {name.replace("_", "-"): name for name in registry.OPTIMIZERS}
#: Learning rates where none is given, for optimizers whose steps do not shrink with the gradients.
DEFAULT_LRS = {"adam": 0.001, "rowwise-adam": 0.001, "lamb": 0.001}
DEFAULT_LR = 0.1  #: that of all others
DEFAULT_SETTINGS = ("fp32", "int8:0.05", "int4:0.05", "int4:0.01", "int2:0.05", "int4:0:nearest")
_COUNT_MAX = 2**63 - 1
# Larger batches would overflow the 32-bit positions of their ids, 26 a click.
_BATCH_MAX = 1 << 24
_SYNTAX = "PRECISION[:CACHE[:ROUNDING]], such as int8:0.05 or int4:0:nearest"
_REPORTED = re.compile(r"(?P<precision>\w+)(?: \+ (?P<percent>[\w.+-]+) %)?(?: (?P<rounding>\w+))?")


@dataclass(frozen=True)
class Setting:
    """How the tables of one of the compared models are stored.

    Attributes
    ----------
    precision : str
        Storage format of the rows, one of `PRECISIONS`.
    load_factor : float
        Cache rows as a share of the table rows; 0 for no cache.
    rounding : str
        How updated rows are rounded, one of `ROUNDINGS`.
    """

    precision: str
    load_factor: float = 0.0
    rounding: str = registry.DEFAULT_ROUNDING

    @classmethod
    def parse(cls, text: str) -> Setting:
        """Read ``PRECISION[:CACHE[:ROUNDING]]``, or a name from a report.

        Parameters
        ----------
        text : str
            Such as "fp32", "int8:0.05", "int4:0:nearest" or "int4 + 5 %".

        Returns
        -------
        Setting
            The setting.

        Raises
        ------
        OptionError
            If a part is not known or out of range.
        """
        parts = _written(text).split(":")
        if len(parts) > 3:
            raise OptionError(f"--setting {text!r}: expected {_SYNTAX}")
        defaults = ["", str(cls.load_factor), cls.rounding]
        precision, load, rounding = parts + defaults[len(parts) :]
        if precision not in PRECISIONS:
            known = ", ".join(PRECISIONS)
            raise OptionError(f"--setting {text!r}: no precision {precision!r}; known: {known}")
        if rounding not in ROUNDINGS:
            known = " or ".join(ROUNDINGS)
            raise OptionError(f"--setting {text!r}: rounding {rounding!r} is not {known}")
        try:
            load_factor = float(load)
        except ValueError:
            load_factor = -1.0
        if not 0.0 <= load_factor <= 1.0:
            raise OptionError(f"--setting {text!r}: cache {load!r} is not a number from 0 to 1")
        return cls(precision, load_factor, rounding)

    @property
    def text(self) -> str:
        """What `parse` makes this setting of, as short as it can be."""
        load = f"{self.load_factor:g}"
        if float(load) != self.load_factor:
            load = repr(self.load_factor)
        if self.rounding != type(self).rounding:
            return f"{self.precision}:{load}:{self.rounding}"
        return f"{self.precision}:{load}" if self.load_factor else self.precision

    @property
    def name(self) -> str:
        """Name in the report; it leaves out what is as by default."""
        cache = f" + {100 * self.load_factor:g} %" if self.load_factor else ""
        rounding = "" if self.rounding == type(self).rounding else f" {self.rounding}"
        return f"{self.precision}{cache}{rounding}"


def _written(text: str) -> str:
    """Return a setting as the command line takes it, also if a report named it."""
    found = _REPORTED.fullmatch(text.strip())
    try:  # in decimals, as the name was: 0.7 / 100 is not 0.007 in binary
        load = float(Decimal(found["percent"] or 0) / 100) if found else 0.0
    except InvalidOperation:
        return text
    if found is None or not (found["percent"] or found["rounding"]):
        return text
    return ":".join(filter(None, (found["precision"], repr(load), found["rounding"])))


@dataclass(frozen=True)
class TrainOptions:
    """The options of a run, checked; the first setting is what the others are compared with.

    The attributes are the options of ``mpembed train``, which takes its defaults from here; `data`
    has those that say which data to read, and how.
    """

    settings: tuple[Setting, ...]
    data: DataOptions = field(default_factory=DataOptions)
    dim: int = 16
    batch_size: int = 128
    epochs: int = 1
    rows: int | None = None
    optimizer: str = "rowwise-adagrad"
    lr: float | None = None  # None becomes the optimizer's
    policy: str = "lfu"
    seed: int = 0
    seeds: int = 1
    min_count: int = 1
    max_rows: int | None = None
    threads: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "optimizer", self.optimizer.replace("_", "-"))
        object.__setattr__(self, "lr", self.table_lr)  # as results report it
        for name, value, low, high in (
            ("dim", self.dim, 1, registry.MAX_DIM),
            ("batch-size", self.batch_size, 1, _BATCH_MAX),
            ("epochs", self.epochs, 1, _COUNT_MAX),
            ("rows", self.rows, 1, _COUNT_MAX),
            ("seed", self.seed, 0, MAX_SEED),
            ("seeds", self.seeds, 1, _COUNT_MAX),
            ("min-count", self.min_count, 1, _COUNT_MAX),
            ("max-rows", self.max_rows, 3, _COUNT_MAX),
            ("threads", self.threads, 1, MAX_THREADS),
        ):
            if value is not None and value < low:
                raise OptionError(f"--{name} is {value}; it must be at least {low}")
            if value is not None and value > high:
                raise OptionError(f"--{name} is {value}; it must be at most {high}")
        last = self.seed + self.seeds - 1
        if last > MAX_SEED:
            raise OptionError(f"--seeds is {self.seeds}; the last seed, {last}, exceeds {MAX_SEED}")
        if not 0.0 < self.table_lr <= FLOAT_MAX:
            raise OptionError(f"--lr is {self.lr}; it must be above 0 and at most {FLOAT_MAX:.4g}")
        for name, choice, known in (
            ("optimizer", self.optimizer, OPTIMIZERS),
            ("policy", self.policy, POLICIES),
        ):
            if choice not in known:
                raise OptionError(f"--{name} {choice!r} is not one of {', '.join(known)}")
        names = [s.name for s in self.settings]
        for name in names:
            if names.count(name) > 1:
                raise OptionError(f"--setting: {name!r} is given twice")
        if not names:
            raise OptionError("--setting: at least one is needed")

    @property
    def table_lr(self) -> float:
        """The learning rate of the tables: `lr`, or the optimizer's default."""
        return DEFAULT_LRS.get(self.optimizer, DEFAULT_LR) if self.lr is None else self.lr

    @property
    def log_shift(self) -> int:
        """What is added to the integers before their logarithm; DLRM's script adds 1 for SGD."""
        return 1 if self.optimizer == "sgd" else 2
