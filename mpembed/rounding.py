"""How much of what happens to a table is rounding noise, and what helps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mpembed import registry
from mpembed.config import TableConfig

#: The largest ratio of rounding noise to updates, as sums of squares, that is fine. In the study
#: INT8 on the sequence model (0.04) and INT4 on clicks (0.01) lose nothing, INT4 on the sequence
#: model (3.5) does; in a factorisation tables at 0.02 lose nothing, and those from 0.2 on do.
NOISE_LIMIT = 0.1
#: A cache of fewer rows than this share of the table's is small.
SMALL_CACHE = 0.3

#: Fewer measured rows than these are not judged.
LEAST_ROWS = 16

FINE, LARGER_CACHE, RAISE_PRECISION = "fine", "larger cache", "raise precision"
TOO_FEW = "too few updates"
#: The verdicts that ask for a change.
BAD = (LARGER_CACHE, RAISE_PRECISION)

# The bits to which a plain format stores a value; of an integer format, its codes' bits.
_PLAIN_BITS = {"bf16": 8, "fp16": 11, "fp32": 24}


class RoundingWarning(UserWarning):
    """A table whose rounding noise is too large beside its updates."""


@dataclass(frozen=True)
class TableRounding:
    """What rounding adds to a table, measured over a sample of its writes.

    Attributes
    ----------
    name, precision : str
        The table.
    rows : int
        Updated rows that were measured, about one of 1024.
    ratio : float
        The noise's variance, summed over the writes of rows to the table, over the sum of squares
        of the updates, those of cached rows included. NaN if nothing was measured.
    verdict : str
        ``"fine"`` (a ratio up to `NOISE_LIMIT`), ``"larger cache"``, ``"raise precision"``, or
        ``"too few updates"`` (fewer rows than `LEAST_ROWS`).
    advice : str
        What to do; empty if nothing.
    """

    name: str
    precision: str
    rows: int
    ratio: float
    verdict: str
    advice: str

    @property
    def bad(self) -> bool:
        """Whether the noise is too large."""
        return self.verdict in BAD


class RoundingReport(dict[str, TableRounding]):
    """What `EmbeddingBagCollection.rounding_report` found, by table; ``str()`` is a table."""

    @property
    def bad(self) -> tuple[TableRounding, ...]:
        """The tables whose noise is too large."""
        return tuple(table for table in self.values() if table.bad)

    def __str__(self) -> str:
        head = ("table", "precision", "rows measured", "noise / update", "verdict")
        lines = [head, *(_cells(table) for table in self.values())]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        return "\n".join(
            "  ".join(
                cell.rjust(width) if 1 < i < 4 else cell.ljust(width)
                for i, (cell, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in lines
        )


def _cells(table: TableRounding) -> tuple[str, ...]:
    ratio = "-" if math.isnan(table.ratio) else f"{table.ratio:.2g}"
    verdict = f"{table.verdict}: {table.advice}" if table.advice else table.verdict
    return table.name, table.precision, f"{table.rows:,}", ratio, verdict


def judge(
    tables: Sequence[TableConfig], load_factors: Sequence[float], sums: npt.NDArray[np.int64]
) -> RoundingReport:
    """Judge what was measured.

    Parameters
    ----------
    tables : sequence of TableConfig
        The tables.
    load_factors : sequence of float
        Cache rows as a share of the rows of each table's group; 0 without a cache.
    sums : ndarray (T, len(registry.NOISE_SUMS)) of int64
        The sums.
    """
    found = zip(tables, load_factors, sums.tolist(), strict=True)
    return RoundingReport(
        (table.name, _judged(table, load, dict(zip(registry.NOISE_SUMS, row, strict=True))))
        for table, load, row in found
    )


def _judged(table: TableConfig, load_factor: float, sums: dict[str, int]) -> TableRounding:
    rows, noise, update = sums["rows"], sums["rounding"], sums["update"]
    exact = table.precision == "fp32"
    ratio, verdict, advice = 0.0, FINE, ""
    if noise > 0:
        ratio = noise / update if update else math.inf
    elif rows == 0 and not exact:
        ratio = math.nan
    if rows < LEAST_ROWS and not exact:
        verdict = TOO_FEW
    elif ratio > NOISE_LIMIT:
        small = load_factor < SMALL_CACHE
        verdict = LARGER_CACHE if small and load_factor > 0 else RAISE_PRECISION
        advice = _finer(table.precision, ratio) + (" or a larger cache" if small else "")
    return TableRounding(table.name, table.precision, rows, ratio, verdict, advice)


def significant_bits(precision: str) -> int:
    """Return the bits to which a format stores a value."""
    return _PLAIN_BITS.get(precision) or registry.code_bytes(precision, 8)


def _finer(precision: str, ratio: float) -> str:
    """Return the narrowest format in which the noise should be fine.

    The ratio follows the step where updates are smaller than a step, and its square where they are
    larger; a power between the two is taken.
    """
    needed = significant_bits(precision) + math.log2(ratio / NOISE_LIMIT) / 1.5
    fine = [name for name in registry.FORMATS if significant_bits(name) >= needed]
    # Of formats that are equally wide, the registry's first.
    return min(fine, key=lambda name: registry.code_bytes(name, 8), default="fp32")
