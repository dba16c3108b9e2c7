"""What is compared: tables, batches, contenders, and what a measurement gives."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

TORCHREC, OURS, PLAIN = "TorchRec fp32", "TorchRec + mpembed", "mpembed plain"
CONTENDERS = (TORCHREC, OURS, PLAIN)
MODES = ("table-wise", "row-wise")
ROWS = (500_000, 200_000, 50_000, 20_000, 10_000, 2_000, 1_000, 500)
BATCHES = 24  # different ones, used over and over


@dataclass(frozen=True)
class Setting:
    """One comparison: all contenders take turns on the same batches.

    Attributes
    ----------
    world : int
        Processes.
    length : int
        Indices a bag.
    dim : int
        Columns of every table.
    batch : int
        Bags of a feature, of all processes together.
    precision : str
        Of mpembed's rows.
    cache : float
        Cached rows, of the table's.
    rounds, steps : int
        In each round each contender takes so many steps.
    """

    world: int
    length: int
    dim: int
    batch: int
    precision: str
    cache: float
    rounds: int
    steps: int

    @property
    def bags(self) -> int:
        """Bags of a feature, of one process."""
        return self.batch // self.world

    def as_dict(self) -> dict[str, Any]:
        """Return the fields by name."""
        return asdict(self)


def indices(setting: Setting, rank: int) -> list[list[npt.NDArray[np.int64]]]:
    """Return a rank's batches: of each, the indices of every table.

    The n-th most frequent row has a share of about 1/n. Frequent rows lie anywhere in a table.
    """
    places = [np.random.default_rng(number).permutation(rows) for number, rows in enumerate(ROWS)]
    generator = np.random.default_rng([rank, setting.world, setting.length])
    count = setting.bags * setting.length
    found = []
    for _ in range(BATCHES):
        ranked = [np.exp(generator.random(count) * np.log(rows)).astype(np.int64) for rows in ROWS]
        found.append([place[one - 1] for place, one in zip(places, ranked, strict=True)])
    return found
