"""What a model of the study is to the rest of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from study.settings import Setting
from study.tables import row_bytes

import mpembed as mpe

CURVE_POINTS = 60
#: Called with the share of a run that is done.
Advance = Callable[[float], None]


@dataclass
class Outcome:
    """What a run found.

    Attributes
    ----------
    metrics : dict of str to float
        Of the test part.
    losses : list of float
        The training loss of each step.
    report : dict
        ``memory_report()`` of the tables that the setting is about.
    stats : dict
        Their ``stats()``.
    rows : int
        Rows of these tables.
    noise : dict of str to float
        Each table's rounding noise over its updates.
    """

    metrics: dict[str, float]
    losses: list[float]
    report: dict[str, Any]
    stats: dict[str, dict[str, int]] = field(default_factory=dict)
    rows: int = 0
    noise: dict[str, float] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Return what the results file holds of it."""
        hits = sum(table["hits"] for table in self.stats.values())
        looked = hits + sum(table["misses"] for table in self.stats.values())
        losses = np.array(self.losses)
        stretches = np.array_split(losses, min(CURVE_POINTS, len(losses)))
        return {
            "metrics": {name: round(value, 7) for name, value in self.metrics.items()},
            "bytes": row_bytes(self.report, self.rows),
            "hit_rate": hits / looked if looked and self.report["caches"] else None,
            "noise": {k: round(v, 5) for k, v in self.noise.items() if np.isfinite(v)},
            "steps": len(losses),
            "curve": [round(float(part.mean()), 7) for part in stretches],
        }


class Model(Protocol):
    """One of the four models, its sizes and its learning rates.

    Attributes
    ----------
    name, title : str
        In commands, and in the report.
    metric : str
        The first of the metrics, which the report compares.
    higher : bool
        Whether a higher metric is better.
    optimizer : str
        A name of the registry.
    rates : dict of str to float
        The learning rate of each optimizer that is tried.
    dim, other_dim : int
        The dimension of the tables, and the other one that is tried.
    equal_bytes : dict of str to int
        Dimension by precision of rows that take the bytes of INT4 and a cache of 5 %.
    several : bool
        Whether it looks up a table several times a step.
    """

    name: str
    title: str
    metric: str
    higher: bool
    optimizer: str
    rates: Mapping[str, float]
    dim: int = 64
    other_dim: int = 16
    equal_bytes: Mapping[str, int] = {"fp32": 12, "int8": 41, "int8_fp16": 46}
    several: bool = False

    def load(self, path: Path | None, quick: bool) -> Any:
        """Read or make the data."""

    def describe(self, data: Any) -> dict[str, Any]:
        """Say what the data are: ``name`` and counts."""

    def run(self, data: Any, setting: Setting, seed: int, advance: Advance) -> Outcome:
        """Train and test under a setting."""


def collection_outcome(
    emb: mpe.EmbeddingBagCollection, metrics: dict[str, float], losses: list[float]
) -> Outcome:
    """Return the outcome of a run that trained one collection."""
    rows = sum(table.num_embeddings for table in emb.tables)
    noise = {name: table.ratio for name, table in emb.rounding_report().items()}
    return Outcome(metrics, losses, emb.memory_report(), emb.stats(), rows, noise)


def batches(
    count: int, size: int, epochs: int, rng: np.random.Generator, advance: Advance
) -> Iterator[npt.NDArray[np.int64]]:
    """Yield the places of each batch in a new order each epoch; short last batches are left out."""
    steps = max(1, count // size)
    for epoch in range(epochs):
        order = rng.permutation(count)
        for step in range(steps):
            yield order[step * size : (step + 1) * size]
            if step % 16 == 0:
                advance((epoch * steps + step) / (epochs * steps))


def ranking(ranks: npt.NDArray[np.int64]) -> dict[str, float]:
    """Return NDCG@10 and the hit rates of targets at these ranks, from 0."""
    gains = np.where(ranks < 10, 1.0 / np.log2(ranks + 2.0), 0.0)
    return {
        "ndcg@10": float(gains.mean()),
        "hr@10": float((ranks < 10).mean()),
        "hr@20": float((ranks < 20).mean()),
    }


def target_ranks(
    scores: npt.NDArray[np.float32], targets: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """Return how many items score at least as high as each row's target, itself left out."""
    own = scores[np.arange(len(targets)), targets]
    ranks: npt.NDArray[np.int64] = ((scores >= own[:, None]).sum(1) - 1).astype(np.int64)
    return ranks
